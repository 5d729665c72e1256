"""Rules of the microlearning tutorial's notebook, as custom rules on the library's interface.

The notebook sums over the batch instead of averaging, drops the factor 2 of the squared error, keeps the bias
of a layer as a column of its weights, and has its own form of node perturbation.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

import lax_learning as ll
from lax_learning.metrics import Moments, product_moments
from lax_learning.noise import NoiseLike, as_noise

Params = Any
Activation = Callable[[jax.Array], jax.Array]


def _times(factor: float, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: factor * leaf, tree)


def in_notebook_units(rule: ll.Rule) -> ll.Rule:
    """Multiplies the gradients of a rule by `batch / 2`; the loss is still the mean."""

    def value_and_grad(key: jax.Array, params: Params, state: Any, x: Any, y: Any) -> Any:
        loss, grads, state = rule.value_and_grad(key, params, state, x, y)
        return loss, _times(len(x) / 2, grads), state

    def signals(*args: Any) -> ll.Signals:  # of a batch of one
        return ll.Signals(*_times(1 / 2, rule.signals(*args)))  # type: ignore[misc]

    return rule._replace(value_and_grad=value_and_grad, signals=rule.signals and signals)


def with_bias_decay(rule: ll.Rule, decay: ArrayLike) -> ll.Rule:
    """Adds `decay b` to the gradients of biases in layers that have feedback.

    Kolen-Pollack decays only weights with feedback; in the notebook, the bias is a column of these weights.
    """

    def decays(params: Params, feedback: Any) -> Params:
        return tuple(
            {name: decay * w if name == "b" and jax.tree.leaves(of_layer) else jnp.zeros_like(w)
             for name, w in weights.items()}
            for weights, of_layer in zip(params, feedback, strict=True)
        )  # fmt: skip

    def value_and_grad(key: jax.Array, params: Params, state: Any, x: Any, y: Any) -> Any:
        loss, grads, new_state = rule.value_and_grad(key, params, state, x, y)
        return loss, jax.tree.map(jnp.add, grads, decays(params, state.feedback)), new_state

    def signals(key: jax.Array, params: Params, state: Any, x: Any, y: Any) -> ll.Signals:
        deltas, rest = rule.signals(key, params, state, x, y)  # type: ignore[misc]
        own = decays(params, state.feedback)
        return ll.Signals(deltas, own if rest is None else jax.tree.map(jnp.add, rest, own))

    return rule._replace(value_and_grad=value_and_grad, signals=rule.signals and signals)


def kolen_pollack(
    model: ll.Model, loss: ll.Loss, *, optimizer: optax.GradientTransformation, decay: float = 0.1
) -> ll.Rule:
    """Returns `ll.kolen_pollack` in the notebook's units, with a decay independent of the batch size.

    Params are a sequence of layers, dicts with an entry `b`; `optimizer` is that of the weights.
    """

    def of_batch(size: int) -> ll.Rule:
        def update(updates: Any, state: Any, params: Any = None) -> Any:
            return optimizer.update(_times(size / 2, updates), state, params)

        in_units = optax.GradientTransformation(optimizer.init, update)
        rule = ll.kolen_pollack(model, loss, optimizer=in_units, decay=2 * decay / size)
        return in_notebook_units(with_bias_decay(rule, 2 * decay / size))

    def value_and_grad(key: jax.Array, params: Params, state: Any, x: Any, y: Any) -> Any:
        return of_batch(len(x)).value_and_grad(key, params, state, x, y)

    return of_batch(1)._replace(value_and_grad=value_and_grad)


class Factors(NamedTuple):
    """Factors of the gradients of the notebook's node perturbation."""

    losses: jax.Array  # of every example, without noise
    inputs: tuple[jax.Array, ...]  # of every layer with noise, [batch, in]
    deltas: tuple[jax.Array, ...]  # teaching signals of every layer, [batch, out]


def node_factors(
    activations: Sequence[Activation], loss: ll.Loss, *, sigma: ArrayLike, noise: NoiseLike = "normal"
) -> Callable[..., Factors]:
    """Returns `(key, params, x, y) -> Factors` of the notebook's form of `node_perturbation`.

    Args:
      activations: activation function of each layer of an `ll.mlp`.
      loss: per-example loss.
      sigma: standard deviation of the noise.
      noise: "normal", "rademacher" or a function `(key, like) -> unit noise`, with one array per layer.
    """
    draw = as_noise(noise)

    def run(params: Params, x: jax.Array, noise: Sequence[Any]) -> tuple[Any, Any]:
        inputs, activities = [], []
        for weights, activation, added in zip(params, activations, noise, strict=True):
            inputs.append(x)
            x = activation(x @ weights["w"] + weights["b"]) + added
            activities.append(x)
        return tuple(inputs), tuple(activities)

    def factors(key: jax.Array, params: Params, x: jax.Array, y: jax.Array) -> Factors:
        _, clean = run(params, x, [0.0] * len(params))
        inputs, noisy = run(params, x, _times(sigma, draw(key, clean)))  # type: ignore[arg-type]
        losses = loss(clean[-1], y)
        credit = ((loss(noisy[-1], y) - losses) / sigma**2)[:, None]
        deltas = jax.tree.map(lambda after, before: credit * (after - before), noisy, clean)
        return Factors(losses, inputs, deltas)

    return factors


def node_perturbation(
    activations: Sequence[Activation], loss: ll.Loss, *, sigma: ArrayLike, noise: NoiseLike = "normal"
) -> ll.Rule:
    """Returns the notebook's node perturbation, in the units of the gradient.

    `delta_l = (l(xi) - l(0)) (a_l(xi) - a_l(0)) / sigma^2`, `dw_l = x_l(xi)^T delta_l / batch`

    Noise is added to the activities `a`, after the activation function, whose derivative is left out. The
    change of an activity includes noise from the layers below, and the inputs of synapses are noisy as well.
    The estimate is therefore biased. Arguments are those of `node_factors`.
    """
    factors = node_factors(activations, loss, sigma=sigma, noise=noise)

    def value_and_grad(key: jax.Array, params: Params, state: Any, x: jax.Array, y: jax.Array) -> Any:
        losses, inputs, deltas = factors(key, params, x, y)
        deltas = _times(1 / len(x), deltas)
        grads = tuple({"w": i.T @ d, "b": jnp.sum(d, axis=0)} for i, d in zip(inputs, deltas, strict=True))
        return jnp.mean(losses), grads, state

    return ll.Rule(lambda key, params, x: (), value_and_grad)


def node_moments(factors: Callable[..., Factors]) -> Callable[..., Moments]:
    """Returns `(key, params, x, y) -> Moments` over examples, one array per layer, with the bias as last row.

    Computes `metrics.example_moments` of `node_perturbation` by matrix products.
    """

    def moments(key: jax.Array, params: Params, x: jax.Array, y: jax.Array) -> Moments:
        _, inputs, deltas = factors(key, params, x, y)
        with_bias = [jnp.concatenate([i, jnp.ones((len(x), 1), x.dtype)], axis=1) for i in inputs]
        return jax.tree.map(lambda *leaves: leaves, *map(product_moments, with_bias, deltas))

    return moments
