"""The ReLU networks of generators and critics, and how PyTorch initialises them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jaxtyping import Array

from lax_learning._checks import check_count
from lax_learning.layers import dense, identity
from lax_learning.networks import Network
from lax_learning.types import Key


def torch_uniform(fan_in: int) -> Initializer:
    """Uniform in +-1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: Key, shape: Sequence[int], dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound, out_sharding=out_sharding)

    return init


def relu_network(
    num_inputs: int,
    hidden: Sequence[int],
    num_outputs: int,
    w_init: Callable[[int], Initializer],
    b_init: Callable[[int], Initializer] | None,
    dtype: Any,
    name: str = "hidden",
) -> Network:
    """ReLU layers and a linear one, the initialisers made for each number of inputs.

    `name` is what errors call the widths.
    """
    check_count("num_inputs", num_inputs)
    if isinstance(hidden, str) or not isinstance(hidden, Sequence):
        raise TypeError(f"{name}: expected a sequence of widths, got {hidden!r}")
    for i, width in enumerate(hidden):
        check_count(f"{name}[{i}]", width)
    widths = (num_inputs, *hidden, num_outputs)
    activations = (*(jax.nn.relu for _ in hidden), identity)
    layers = tuple(
        dense(n, m, phi, w_init=w_init(n), b_init=None if b_init is None else b_init(n), dtype=dtype)
        for n, m, phi in zip(widths[:-1], widths[1:], activations, strict=True)
    )
    return Network(layers, (num_inputs,))
