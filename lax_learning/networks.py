"""Networks as rows of layers with taps on their pre-activations; multilayer perceptrons."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, lecun_normal, zeros
from jaxtyping import Array, ArrayLike

from lax_learning._checks import check_count, check_inputs, check_layers
from lax_learning.layers import Activation, Layer, dense, identity
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
      inputs: presynaptic activity `x` of every layer, each `[batch, ...]`.
      pre_activations: `z` of every layer, what was put into the taps included, each `[batch, ...]`.
      output: activity of the last layer, `[batch, ...]`.
    """

    inputs: tuple[Array, ...]
    pre_activations: tuple[Array, ...]
    output: Array


@dataclass(frozen=True)
class Network:
    """A feed-forward network: layers in a row, and the shape of one input.

    `params` is a tuple with one dict of weights a layer. Entries other than `w` and `b` (a rule's
    `feedback`) play no part in the forward pass, so the params of every rule go straight in.
    """

    layers: tuple[Layer, ...]
    input_shape: tuple[int, ...]

    def init(self, key: Key) -> tuple[Weights, ...]:
        """Draws the weights of all layers, one key a layer."""
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
    ) -> Trace:
        """Runs the network with open taps: `z_l = linear(w_l, a_{l-1}) + b_l + tap_l`.

        Args:
          params: the parameters, one dict a layer.
          x: `[batch, *input_shape]`.
          taps: what to add to the pre-activations of every layer, each of the shape of `z`; None for
            nothing. The gradient by the taps is the teaching signal `delta = dL/dz`.
          product: the product of weights and input; `lax_learning.feedback` puts products with another
            backward pass here.

        Returns:
          The trace of the pass.

        Raises:
          TypeError, ValueError: if `x` is no non-empty floating batch of the input shape, or params or
            taps do not have one entry a layer.

        Example:
          >>> import jax, jax.numpy as jnp
          >>> network = mlp((3, 4, 2))
          >>> trace = network.forward(network.init(jax.random.key(0)), jnp.ones((5, 3)))
          >>> [z.shape for z in trace.pre_activations]
          [(5, 4), (5, 2)]
        """
        x = jnp.asarray(x)
        check_inputs(x, self.input_shape)
        check_layers("params", params, len(self.layers))
        if taps is not None and len(taps) != len(self.layers):
            raise ValueError(f"taps: expected {len(self.layers)} layers, got {len(taps)}")
        inputs, pre_activations, a = [], [], x
        for i, (layer, weights) in enumerate(zip(self.layers, params, strict=True)):
            inputs.append(a)
            z = pre_activation(layer, weights, a, product)
            if taps is not None:
                z = z + taps[i]
            pre_activations.append(z)
            a = layer.activation(z)
        return Trace(tuple(inputs), tuple(pre_activations), a)


def mlp(
    widths: Sequence[int],
    *,
    activation: Activation | Sequence[Activation] = jax.nn.relu,
    output_activation: Activation = identity,
    w_init: Initializer = lecun_normal(),  # noqa: B008 (a pure function)
    b_init: Initializer | None = zeros,
    dtype: jnp.dtype | type = jnp.float32,
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
      TypeError, ValueError: for fewer than two widths, a width that is no positive int, or a number of
        activations other than the number of hidden layers.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> network = mlp((784, 500, 10), activation=jax.nn.sigmoid)
      >>> params = network.init(jax.random.key(0))
      >>> network.apply(params, jnp.zeros((32, 784))).shape
      (32, 10)
    """
    widths = tuple(widths)
    if len(widths) < 2:
        raise ValueError(f"widths: expected an input and an output size at least, got {widths}")
    for i, width in enumerate(widths):
        check_count(f"widths[{i}]", width)
    num_hidden = len(widths) - 2
    hidden = (activation,) * num_hidden if callable(activation) else tuple(activation)
    if len(hidden) != num_hidden:
        raise ValueError(f"activation: expected {num_hidden}, one a hidden layer, got {len(hidden)}")
    layers = tuple(
        dense(n_in, n_out, phi, w_init=w_init, b_init=b_init, dtype=dtype)
        for n_in, n_out, phi in zip(widths[:-1], widths[1:], (*hidden, output_activation), strict=True)
    )
    return Network(layers, (widths[0],))
