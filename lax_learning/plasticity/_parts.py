"""What k-cap networks of every kind are made of: who fires, and where there are synapses."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from lax_learning._checks import check_choice, check_count, check_probability
from lax_learning.plasticity.k_cap import top_k_mask
from lax_learning.plasticity.networks import Fire
from lax_learning.types import Key


def firing(name: str, cap: int, width: int, fired: str) -> Fire:
    """`z -> (cap(relu(z)), who fired)` for a layer of `width` units; `name` is that of the argument `cap`."""
    check_count(name, cap)
    if cap > width:
        raise ValueError(f"{name}: expected at most {width}, the width of its layer, got {cap}")
    check_choice("fired", fired, ("value", "index"))

    def fire(z: Array) -> tuple[Array, Array]:
        values = jax.nn.relu(z)
        chosen = top_k_mask(values, cap)
        who = chosen & (values > 0) if fired == "value" else chosen
        return jnp.where(chosen, values, 0), who.astype(jnp.int32)

    return fire


def random_mask(edge_probability: ArrayLike) -> Callable[[Key, tuple[int, int]], Array]:
    """`(key, shape) -> mask` with synapses of that probability."""
    check_probability("edge_probability", edge_probability)
    return lambda key, shape: jax.random.bernoulli(key, edge_probability, shape)


def full_mask(key: Key, shape: tuple[int, int]) -> Array:
    """A synapse everywhere."""
    return jnp.ones(shape, bool)
