"""ReLU networks of generators and critics, started as PyTorch starts its linear layers."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jaxtyping import Array

from lax_learning._checks import as_sizes, check_count, check_floating_dtype, check_memory
from lax_learning.models import Model
from lax_learning.networks import dense_layers, identity
from lax_learning.types import Key

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
    dtype: Any,
    *,
    w_init: Callable[[int], Initializer] = torch_uniform,
    b_init: Callable[[int], Initializer] | None = torch_uniform,
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
    pairs = list(itertools.pairwise((num_inputs, *hidden, num_outputs)))
    check_memory(f"num_inputs, {name} and number of outputs", [(copies, *pair) for pair in pairs], dtype)
    layers = [
        {"w": ((n, m), w_init(n)), "b": ((m,), None if b_init is None else b_init(n))} for n, m in pairs
    ]
    return dense_layers(layers, (*(jax.nn.relu for _ in hidden), identity), dtype)
