"""Shared parts of delta rules: signals in, gradients out, in the units of `jax.grad` or of the tutorial."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from lax_learning._checks import (
    as_array,
    as_floating,
    as_layers,
    check_callable,
    check_choice,
    check_inputs,
    check_key,
    check_targets,
    describe,
)
from lax_learning._precision import raised
from lax_learning.estimators._draws import scaled
from lax_learning.networks import Network, Product, Trace, plain_product
from lax_learning.taps import pull_back, zero_taps
from lax_learning.types import Key, Loss, Params, Rule, Signals


@runtime_checkable
class WeightedSignals(Protocol):
    """`(key, params, x, y, weight) -> Signals`, the deltas those of `weight` times the loss of an example."""

    def __call__(self, key: Key, params: Params, x: Array, y: Array, weight: float, /) -> Signals: ...


_WEIGHTS: dict[str, Callable[[int], float]] = {
    "gradient": lambda batch_size: 1 / batch_size,
    "tutorial": lambda batch_size: 1 / 2,
}


def delta_rule(
    network: Network, init: Callable[[Key], Params], signals: WeightedSignals, scale: str = "gradient"
) -> Rule:
    """A rule from its teaching signals: `dw_l = sum_examples weight x_l^T delta_l`.

    `weight` is `1/batch` for `scale="gradient"` (the mean loss, what `jax.grad` returns) and 1/2 for
    `scale="tutorial"` (the notebook sums over the batch and drops the factor 2 of the square).
    """
    check_choice("scale", scale, _WEIGHTS)
    weight = _WEIGHTS[scale]
    num_layers = len(network.layers)

    def per_example(key: Key, params: Params, x: ArrayLike, y: ArrayLike) -> Signals:
        x, y = as_batch(network, x, y)
        return signals(key, as_layers("params", params, num_layers), x, y, weight(1))

    def value_and_grad(key: Key, params: Params, x: ArrayLike, y: ArrayLike) -> tuple[Array, Params]:
        check_key("key", key)
        x, y = as_batch(network, x, y)
        layers = as_layers("params", params, num_layers)
        losses, inputs, deltas = signals(key, layers, x, y, weight(x.shape[0]))
        return jnp.mean(losses), pull_back(network, params, inputs, deltas)

    return Rule(init, value_and_grad, per_example)


def check_problem(network: Any, loss: Any) -> None:
    """Raises TypeError unless a rule is made for a network and a loss."""
    if not isinstance(network, Network):
        raise TypeError(f"network: expected a Network, such as mlp((784, 100, 10)), got {describe(network)}")
    check_loss(loss)


def check_loss(loss: Any) -> None:
    """Raises TypeError unless `loss` is a function of two arguments."""
    expected = "a function (output, y) -> losses, such as squared_error"
    check_callable("loss", loss, expected, num_arguments=2)


def as_batch(network: Network, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    """x and y as JAX arrays; raises unless x is a non-empty floating batch and y has as many rows."""
    x, y = as_array("x", x), as_array("y", y)
    check_inputs(x, network.input_shape)
    check_targets(y, x.shape[0])
    return x, y


def checked_losses(loss: Loss, output: Array, y: Array) -> Array:
    """`loss(output, y)` in float32 or wider, or an error unless that is one floating number an example."""
    losses = as_floating("loss", loss(output, y))
    if losses.shape != output.shape[:1]:
        hint = "leave out the mean" if losses.ndim == 0 else "sum or average over the axes of an example"
        raise ValueError(
            f"loss: expected one number an example, shape {list(output.shape[:1])}, "
            f"got {list(losses.shape)}; {hint if losses.ndim != 1 else 'the mean is taken by the rule'}"
        )
    return losses.astype(raised(losses))


def backward_signals(
    network: Network,
    loss: Loss,
    params: Params,
    x: Array,
    y: Array,
    weight: float,
    product: Product = plain_product,
) -> Signals:
    """Teaching signals by one backward pass through the given product: `delta_l = d(weight l)/dtap_l`."""

    def run(taps: tuple[Array, ...]) -> tuple[Array, Trace]:
        trace = network.forward(params, x, taps, product)
        return checked_losses(loss, trace.output, y), trace

    losses, transpose, trace = jax.vjp(run, zero_taps(network, params, x), has_aux=True)
    (deltas,) = transpose(jnp.full_like(losses, weight))
    return Signals(losses, trace.inputs, deltas)


def per_example(factors: Array, values: tuple[Array, ...]) -> tuple[Array, ...]:
    """Multiplies the values of every example by the factor of that example, `[batch]`."""
    return jax.tree.map(lambda v: scaled(factors.reshape(-1, *(1,) * (v.ndim - 1)), v), values)
