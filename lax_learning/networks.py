"""Networks as rows of layers with taps on their pre-activations; multilayer perceptrons."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, lecun_normal, zeros
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike

from lax_learning._checks import (
    as_array,
    as_layers,
    as_tuple,
    check_callable,
    check_count,
    check_floating,
    check_inputs,
    check_key,
    describe,
)
from lax_learning.layers import ACTIVATION, Activation, Layer, dense, identity
from lax_learning.types import Key, Params, Weights

Product = Callable[[Layer, Weights, Array], Array]


def plain_product(layer: Layer, weights: Weights, x: Array) -> Array:
    """`linear(w, x)`: the product whose backward pass is the true one."""
    return layer.linear(weights["w"], x)


def pre_activation(layer: Layer, weights: Weights, x: Array, product: Product = plain_product) -> Array:
    """`z = linear(w, x) + b`, without `b` where the layer has none."""
    z = product(layer, weights, x)
    if "b" not in weights:
        return z
    b = weights["b"]
    if b.ndim >= z.ndim or any(n not in (1, m) for n, m in zip(b.shape[::-1], z.shape[::-1], strict=False)):
        raise ValueError(f"b: expected a shape that fits {list(z.shape[1:])}, got {list(b.shape)}")
    return z + b


class Trace(NamedTuple):
    """One pass through a network.

    Fields:
      inputs: presynaptic activity `x` of every layer, each `[batch, ...]`; of one with a state
        `[batch, steps, ...]`, `[x_t, a_{t-1}]` at every step.
      pre_activations: `z` of every layer, what was put into the taps included, each `[batch, ...]`.
      activities: `a` of every layer, likewise.
    """

    inputs: tuple[Array, ...]
    pre_activations: tuple[Array, ...]
    activities: tuple[Array, ...]

    @property
    def output(self) -> Array:
        """Activity of the last layer, `[batch, ...]`."""
        return self.activities[-1]


@dataclass(frozen=True)
class Network:
    """A network: layers in a row, with or without state, and the shape of one input.

    `params` is a tuple with one dict of weights a layer. Entries other than `w` and `b` (a rule's
    `feedback`) play no part in the forward pass, so the params of every rule go straight in.
    """

    layers: tuple[Layer, ...]
    input_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        layers = as_tuple("layers", self.layers, "a sequence of layers, such as dense(3, 4)")
        if isinstance(self.layers, Layer):  # a tuple itself
            raise TypeError("layers: expected a sequence of layers, such as (dense(3, 4),), got one Layer")
        if not layers or not all(isinstance(layer, Layer) for layer in layers):
            got = [describe(layer) for layer in layers]
            raise TypeError(f"layers: expected at least one layer, such as dense(3, 4), got {got}")
        input_shape = as_widths("input_shape", self.input_shape)
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "input_shape", input_shape)

    @property
    def passes_error_on(self) -> tuple[bool, ...]:
        """Returns whether each layer passes an error on: to the layer below, or to its own earlier state."""
        return tuple(i > 0 or layer.state_size > 0 for i, layer in enumerate(self.layers))

    def init(self, key: Key) -> tuple[Weights, ...]:
        """Draws the weights of all layers, one key a layer."""
        check_key("key", key)
        keys = jax.random.split(key, len(self.layers))
        return tuple(layer.init(k) for layer, k in zip(self.layers, keys, strict=True))

    def apply(self, params: Params, x: ArrayLike) -> Array:
        """The output `[batch, ...]` for `x [batch, *input_shape]`."""
        return self.forward(params, x).output

    def forward(
        self,
        params: Params,
        x: ArrayLike,
        taps: Sequence[Array] | None = None,
        product: Product = plain_product,
        *,
        activity_taps: Sequence[Array] | None = None,
    ) -> Trace:
        """Runs the network with open taps: `z_l = linear(w_l, a_{l-1}) + b_l + tap_l`.

        Args:
          params: the parameters, one dict a layer.
          x: `[batch, *input_shape]`.
          taps: what to add to the pre-activations of every layer, each of the shape of `z`; None for
            nothing. The gradient by the taps is the teaching signal `delta = dL/dz`.
          product: the product of weights and input; `lax_learning.feedback` puts products with another
            backward pass here.
          activity_taps: what to add to the activities of every layer, each of the shape of `a`.

        Returns:
          The trace of the pass.

        Raises:
          TypeError, ValueError: if `x` is no non-empty floating batch of the input shape, params or taps do
            not have one entry a layer, or a layer with a state gets no sequence or does not keep its size.

        Example:
          >>> import jax, jax.numpy as jnp
          >>> network = mlp((3, 4, 2))
          >>> trace = network.forward(network.init(jax.random.key(0)), jnp.ones((5, 3)))
          >>> [z.shape for z in trace.pre_activations]
          [(5, 4), (5, 2)]
        """
        x = as_array("x", x)
        check_inputs(x, self.input_shape)
        params = as_layers("params", params, len(self.layers))
        every_taps = []
        for name, each in (("taps", taps), ("activity_taps", activity_taps)):
            if each is not None and len(each) != len(self.layers):
                raise ValueError(f"{name}: expected {len(self.layers)} layers, got {len(each)}")
            every_taps.append((None,) * len(self.layers) if each is None else each)
        passes, a = [], x
        for i, (layer, weights, *of_layer) in enumerate(zip(self.layers, params, *every_taps, strict=True)):
            try:
                passes.append(_over_steps(layer, weights, a, of_layer, product))
            except (TypeError, ValueError) as error:
                error.add_note(f"This happened in layers[{i}], which got inputs of shape {list(a.shape)}.")
                raise
            a = passes[-1][-1]
        return Trace(*zip(*passes, strict=True))


_LayerTaps = Sequence[Array | None]
"""Numbers that are added to the pre-activations and to the activities of one layer."""


def _over_steps(
    layer: Layer, weights: Weights, x: Array, taps: _LayerTaps, product: Product
) -> tuple[Array, Array, Array]:
    """Inputs, pre-activations and activities of a layer, step after step if it keeps a state."""

    def once(x: Array, taps: _LayerTaps) -> tuple[Array, Array, Array]:
        z = _plus(pre_activation(layer, weights, x, product), taps[0])
        a = layer.activation(z)
        check_floating("activation", a)
        got = jnp.shape(a)
        if got[:1] != z.shape[:1]:
            raise ValueError(
                f"activation: expected one that keeps the batch, [{z.shape[0]}, ...], got {list(got)}"
            )
        return x, z, _plus(a, taps[1])

    if not layer.state_size:
        return once(x, taps)
    if x.ndim < 3:
        raise ValueError(f"x: expected [batch, steps, ...] for a layer with a state, got {list(x.shape)}")

    dtype = jnp.result_type(x, weights["w"])
    shape = (*x.shape[2:-1], layer.state_size)

    def step(state: Array, now: tuple[Array, _LayerTaps]) -> tuple[Array, tuple[Array, Array, Array]]:
        passed = once(jnp.concatenate([now[0].astype(dtype), state], axis=-1), now[1])
        if passed[-1].shape != state.shape:
            raise ValueError(
                f"activation: expected one that keeps the shape {list(state.shape)} of the state, "
                f"got {list(passed[-1].shape)}"
            )
        return passed[-1].astype(dtype), passed

    def swapped(tree: Any) -> Any:
        return jax.tree.map(lambda v: jnp.swapaxes(v, 0, 1), tree)

    state = jnp.zeros_like(x, dtype, (x.shape[0], *shape))
    # In `jax.shard_map` the state varies over devices as soon as anything does that it is made of.
    first = jax.tree.map(lambda v: v[:, 0], (x, taps))
    state = jnp.zeros_like(jax.eval_shape(lambda state, first: step(state, first)[0], state, first))
    return swapped(jax.lax.scan(step, state, swapped((x, taps)))[1])


def _plus(value: Array, tap: Array | None) -> Array:
    return value if tap is None else value + tap


def mlp(
    widths: Sequence[int],
    *,
    activation: Activation | Sequence[Activation] = jax.nn.relu,
    output_activation: Activation = identity,
    w_init: Initializer = lecun_normal(),  # noqa: B008 (a pure function)
    b_init: Initializer | None = zeros,
    dtype: DTypeLike = jnp.float32,
) -> Network:
    """A multilayer perceptron: `a_0 = x`, `a_l = activation_l(a_{l-1} w_l + b_l)`.

    Args:
      widths: sizes of the input, of every hidden layer and of the output.
      activation: of the hidden layers: one for all, or a sequence with one a hidden layer.
      output_activation: of the last layer; the identity gives logits.
      w_init: initialiser of every `w [in, out]`. The microlearning tutorial's networks have
        `jax.nn.initializers.normal(0.1)` here and for `b_init`.
      b_init: initialiser of every `b [out]`; None for a network without biases.
      dtype: of the parameters.

    Returns:
      The network.

    Raises:
      TypeError, ValueError: for fewer than two widths, a width that is no positive int, a number of
        activations other than the number of hidden layers, activations or initialisers that are no functions,
        or a dtype that is not floating.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> network = mlp((784, 500, 10), activation=jax.nn.sigmoid)
      >>> params = network.init(jax.random.key(0))
      >>> network.apply(params, jnp.zeros((32, 784))).shape
      (32, 10)
    """
    widths = as_widths("widths", widths)
    if len(widths) < 2:
        raise ValueError(f"widths: expected at least an input and an output size, got {widths}")
    num_hidden = len(widths) - 2
    one_for_all = callable(activation)
    hidden = (activation,) * num_hidden if one_for_all else as_tuple("activation", activation, ACTIVATION)
    for i, phi in enumerate(hidden):
        check_callable("activation" if one_for_all else f"activation[{i}]", phi, ACTIVATION)
    check_callable("output_activation", output_activation, ACTIVATION)
    if len(hidden) != num_hidden:
        raise ValueError(f"activation: expected {num_hidden}, one a hidden layer, got {len(hidden)}")
    layers = tuple(
        dense(n_in, n_out, phi, w_init=w_init, b_init=b_init, dtype=dtype)
        for n_in, n_out, phi in zip(widths[:-1], widths[1:], (*hidden, output_activation), strict=True)
    )
    return Network(layers, (widths[0],))


def as_widths(name: str, sizes: Sequence[int]) -> tuple[int, ...]:
    """Returns a sequence of positive ints as a tuple."""
    sizes = as_tuple(name, sizes, "a sequence of ints")
    for i, size in enumerate(sizes):
        check_count(f"{name}[{i}]", size)
    return sizes
