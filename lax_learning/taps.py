"""Taps on the pre-activations: noise goes in, teaching signals come out.

A delta rule needs nothing else: run the network with `Network.forward`, make up a teaching signal for
every layer, and turn it into weight gradients with the local `pull_back`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lax_learning._checks import as_floating, as_layers, as_tuple
from lax_learning.layers import Layer
from lax_learning.networks import Network, pre_activation
from lax_learning.types import Params, Weights


def tap_shapes(network: Network, params: Params, x: Array) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes and dtypes of the taps of every layer for the batch `x`, without running the network."""
    return jax.eval_shape(lambda p, x: network.forward(p, x).pre_activations, params, x)


def zero_taps(network: Network, params: Params, x: Array) -> tuple[Array, ...]:
    """Taps of every layer that add nothing, to differentiate by."""
    return tuple(jnp.zeros_like(tap) for tap in tap_shapes(network, params, x))


def pull_back(network: Network, params: Params, inputs: Sequence[Array], deltas: Sequence[Array]) -> Params:
    """The local pull-back from teaching signals to weight gradients.

    `dw_l = sum_examples x_l^T delta_l`, `db_l = sum_examples delta_l`: one matrix product a layer for
    dense layers, the convolution's own transpose for convolutions. Nothing flows from layer to layer.

    Args:
      network: the network.
      params: its parameters; entries that take no part in the forward pass get zeros.
      inputs: presynaptic activity of every layer, each `[batch, ...]`.
      deltas: teaching signal of every layer, each of the shape of `z`, already divided by the batch
        size where a mean is wanted.

    Returns:
      Gradients with the structure of `params`.

    Raises:
      TypeError, ValueError: at trace time, unless params, inputs and deltas are floating and have one entry a
        layer, and the deltas the shapes of `z`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import lax_learning as ll
      >>> network = ll.mlp((3, 2))
      >>> params = network.init(jax.random.key(0))
      >>> x, delta = jnp.ones((5, 3)), jnp.ones((5, 2))
      >>> pull_back(network, params, (x,), (delta,))[0]["b"].tolist()
      [5.0, 5.0]
    """

    num_layers = len(network.layers)
    as_layers("params", params, num_layers)
    inputs = _one_a_layer("inputs", inputs, num_layers)
    deltas = _one_a_layer("deltas", deltas, num_layers)

    def local(i: int, layer: Layer, weights: Any, x: Array, delta: Array) -> Weights:
        z, transpose = jax.vjp(
            lambda weights: pre_activation(layer, as_layers("params", [weights], 1)[0], x), weights
        )
        if delta.shape != z.shape:
            raise ValueError(f"deltas[{i}]: expected shape {list(z.shape)}, got {list(delta.shape)}")
        (grads,) = transpose(delta.astype(z.dtype))
        return grads

    layers = zip(range(num_layers), network.layers, params, inputs, deltas, strict=True)
    grads = [local(*each) for each in layers]
    return jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(grads))


def _one_a_layer(name: str, arrays: Sequence[Array], num_layers: int) -> tuple[Array, ...]:
    arrays = as_tuple(name, arrays, "a sequence with an array for each layer")
    if len(arrays) != num_layers:
        raise ValueError(f"{name}: expected {num_layers} layers, got {len(arrays)}")
    return tuple(as_floating(f"{name}[{i}]", array) for i, array in enumerate(arrays))
