"""Rules that need taps alone, on NNX models: noise goes into layers with a tap, gradients come out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike

from lax_learning._checks import check_floating
from lax_learning.flax.layers import Credited, Watch, watching
from lax_learning.layers import Layer
from lax_learning.networks import Network, Product, Trace, plain_product, pre_activation
from lax_learning.types import Key, Loss, Params, Rule

Grads = Any


@dataclass(frozen=True)
class Taps:
    """A tap on the pre-activations, for `lax_learning.flax.value_and_grad`; the layer itself stays as it is.

    Example:
      >>> from lax_learning.flax import convert
      >>> convert(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), Taps()).tapped
      True
    """

    def give(self, layer: Credited, rngs: nnx.Rngs | None) -> None:
        layer.tapped = True


def value_and_grad(
    make_rule: Callable[[Network, Loss], Rule], loss_fn: Callable[..., Array]
) -> Callable[..., tuple[Array, Grads]]:
    """The gradient of a loss of an NNX model by a rule that needs nothing but taps.

    For node perturbation `delta_l = (l(xi) - l(0)) xi_l / sigma^2` and `dw_l = x_l^T delta_l / batch` in
    every layer with a tap, see `Taps`. All passes see the same random numbers of the model's own, such as
    dropout; the model's state changes as in one pass.

    Args:
      make_rule: `(network, loss) -> rule`, for example `partial(lax_learning.node_perturbation, sigma=0.1)`,
        or `lax_learning.forward_gradient` with `perturb="activities"`; its draws have one array for each call
        of a layer with a tap, in the order of the calls.
      loss_fn: `(model, *args) -> losses`, one an example, `[batch]`; the layers have the batch axis first.

    Returns:
      `(key, model, *args) -> (mean loss, grads)`, `grads` as those of `nnx.grad`, zero for parameters of
      other layers. A layer that is called twice gets the sum.

    Raises:
      TypeError, ValueError: at the call, for a model without taps, losses that are not one an example, a
        layer without the batch axis, or a rule that needs more than taps.

    Example:
      >>> from functools import partial
      >>> import jax, lax_learning as ll
      >>> from lax_learning.flax import Taps, convert
      >>> model = convert(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), Taps())
      >>> perturb = partial(ll.node_perturbation, sigma=0.1)
      >>> estimate = value_and_grad(perturb, lambda model, x, y: ll.squared_error(model(x), y))
      >>> loss, grads = estimate(jax.random.key(0), model, jnp.ones((5, 3)), jnp.zeros((5, 2)))
      >>> grads["kernel"].shape
      (3, 2)

    References:
      Werfel, Xie, Seung, Learning curves for stochastic gradient descent in linear feedforward
      networks, https://doi.org/10.1162/089976605774320539, 2005.
    """

    def estimate(key: Key, model: Any, *args: Any, **kwargs: Any) -> tuple[Array, Grads]:
        start = nnx.clone(model, graph=True)
        called: list[tuple[Credited, Array]] = []

        def note(layer: Credited, inputs: Array) -> Array:
            z = layer.pre_activation(inputs)
            called.append((layer, z))
            return z

        with watching(Watch(tap=note)):
            losses = loss_fn(model, *args, **kwargs)
        _check(losses, [z for _, z in called])

        def run() -> Array:
            return loss_fn(nnx.clone(start, graph=True), *args, **kwargs)

        layers = [layer for layer, _ in called]
        network = _Tapped(tuple(_as_layer(layer) for layer in layers), (), run)
        nothing = jnp.zeros_like(losses)  # x and y are in the arguments of the loss
        rule = make_rule(network, lambda output, y: output)
        loss, grads = rule.value_and_grad(key, tuple(map(_weights, layers)), nothing, nothing)
        return loss, _as_state(model, layers, grads)

    return estimate


@dataclass(frozen=True)
class _Tapped(Network):
    """A model as the row of the calls of its layers with a tap; the output is its losses."""

    run: Callable[[], Array]

    def forward(
        self,
        params: Params,
        x: ArrayLike,
        taps: Sequence[Array] | None = None,
        product: Product = plain_product,
        *,
        activity_taps: Sequence[Array] | None = None,
    ) -> Trace:
        inputs, pre_activations = [], []

        def tap(layer: Credited, a: Array) -> Array:
            i = len(inputs)
            z = pre_activation(self.layers[i], params[i], a, product)
            z = z if taps is None else z + taps[i]
            inputs.append(a)
            pre_activations.append(z)
            return z

        with watching(Watch(tap=tap)):
            output = self.run()
        # What the model makes of a layer's output is its own affair; the activity at last is its losses.
        activities = cast("tuple[Array, ...]", (*map(_Unknown, inputs[1:]), output))
        return Trace(tuple(inputs), tuple(pre_activations), activities)


def _as_layer(layer: Credited) -> Layer:
    def linear(w: Array, x: Array) -> Array:
        return layer.linear(w, x) if x.ndim > 1 else _needs_more(x)

    return Layer(_needs_more, linear, _needs_more)


def _needs_more(_: Any) -> Any:
    raise ValueError(
        "make_rule: expected a rule that needs taps alone, such as node perturbation, got one that asks for "
        "initialisers or activation functions of the layers"
    )


class _Unknown:
    """The activity of a layer, of which the model alone knows: to ask for its shape is an error."""

    def __init__(self, _: Any) -> None: ...

    shape = property(_needs_more)


def _weights(layer: Credited) -> dict[str, Array]:
    return {"w": layer.kernel[...], **({} if layer.bias is None else {"b": layer.bias[...]})}


def _check(losses: Any, pre_activations: Sequence[Array]) -> None:
    check_floating("loss_fn", losses)
    if losses.ndim != 1:
        raise ValueError(f"loss_fn: expected one loss an example, [batch], got shape {list(losses.shape)}")
    if not pre_activations:
        raise ValueError("model: expected layers with a tap, see convert and Taps, got none that was called")
    for z in pre_activations:
        if z.shape[:1] != losses.shape:
            raise ValueError(
                f"model: expected pre-activations [{len(losses)}, ...], got shape {list(z.shape)}"
            )


def _as_state(model: Any, layers: Sequence[Credited], grads: Params) -> Grads:
    # By the variables, not by the layers: two of them may share one.
    variables = nnx.iter_graph(model, graph=True)
    paths = {id(variable): path for path, variable in variables if isinstance(variable, nnx.Param)}
    found: dict[tuple[Any, ...], Array] = {}
    for layer, of_call in zip(layers, grads, strict=True):
        for variable, name in ((layer.kernel, "w"), (layer.bias, "b")):
            if variable is not None:
                path = paths[id(variable)]
                found[path] = found[path] + of_call[name] if path in found else of_call[name]

    def grad(path: tuple[Any, ...], param: Any) -> Any:
        return param.copy(found.pop(path) if path in found else jnp.zeros_like(param[...]))

    state = nnx.map_state(grad, nnx.state(model, nnx.Param, graph=True))
    assert not found, "every gradient has its place in the state"
    return state
