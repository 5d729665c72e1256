"""The ReLU networks of generators and critics, and how PyTorch initialises them."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jaxtyping import Array

from lax_learning._checks import as_layers, as_sizes, check_count, check_floating_dtype, check_memory
from lax_learning.models import Model
from lax_learning.networks import dense_layers, identity
from lax_learning.types import Key, Params

MAX_LAYERS = 1000


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
    copies: int = 1,
) -> Model:
    """ReLU layers and a linear one, the initialisers made for each number of inputs.

    `name` is what errors call the widths; `copies` is how many of such networks must fit into memory.
    """
    check_count("num_inputs", num_inputs)
    hidden = as_sizes(name, hidden, "a sequence of widths")
    check_floating_dtype("dtype", dtype)
    if len(hidden) > MAX_LAYERS:
        raise ValueError(f"{name}: expected at most {MAX_LAYERS} layers, got {len(hidden)}")
    widths = (num_inputs, *hidden, num_outputs)
    shapes = [(copies, n, m) for n, m in itertools.pairwise(widths)]
    check_memory(f"num_inputs, {name} and number of outputs", shapes, dtype)
    activations = (*(jax.nn.relu for _ in hidden), identity)
    layers = [
        {"w": ((n, m), w_init(n)), "b": ((m,), None if b_init is None else b_init(n))}
        for n, m in itertools.pairwise(widths)
    ]
    network = dense_layers(layers, activations, dtype)

    def apply(params: Params, x: Array) -> Array:
        return network(as_layers("params", params, len(layers)), x)[0]

    return Model(apply, network.init)
