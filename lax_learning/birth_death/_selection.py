"""Random choices among the marked neurons of a population, in static shapes, by given uniform numbers."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def choose(u: Float[Array, " choices"], mask: Bool[Array, " neurons"]) -> Int[Array, " choices"]:
    """For every u in 0..1 the neuron at that share of those in the mask: uniform u, uniform choices."""
    place = jnp.cumsum(mask, dtype=jnp.int32)
    rank = jnp.minimum((u * place[-1].astype(u.dtype)).astype(jnp.int32), place[-1] - 1)
    return jnp.searchsorted(place, rank + 1, method="scan_unrolled").astype(jnp.int32)


def overwrite_distinct(u: Float[Array, " neurons"], mask: Bool[Array, " neurons"]) -> Int[Array, " neurons"]:
    """Copies every neuron in the mask over a different one outside, at random, while there are enough.

    Returns:
      For every neuron the one it becomes a copy of, or itself.
    """
    size, inside = u.shape[0], jnp.sum(mask, dtype=jnp.int32)
    order = jnp.argsort(jnp.where(mask, 1 + u, u))  # those outside and then those inside, at random
    turn = jnp.arange(size, dtype=jnp.int32)
    to = jnp.where(turn < jnp.minimum(inside, size - inside), order, size)
    return turn.at[to].set(order[(turn + size - inside) % size].astype(jnp.int32), mode="drop")


def overwrite_independent(
    u: Float[Array, " neurons"], mask: Bool[Array, " neurons"]
) -> Int[Array, " neurons"]:
    """The same with replacement: of copies that fall on one neuron that of the last one stays."""
    neurons = jnp.arange(u.shape[0], dtype=jnp.int32)
    to = jnp.where(mask & ~jnp.all(mask), choose(u, ~mask), u.shape[0])
    source = jnp.full_like(neurons, -1).at[to].max(neurons, mode="drop")
    return jnp.where(source < 0, neurons, source)
