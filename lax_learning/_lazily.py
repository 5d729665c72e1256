"""A `lax.cond` that skips work under `vmap` unless at least one member needs it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool


def lazily(
    needed: Bool[Array, ""], compute: Callable[..., Any], otherwise: Callable[..., Any], *operands: Any
) -> Any:
    """Returns `compute(*operands)` if needed, else `otherwise(*operands)`.

    Under `vmap`, `lax.cond` becomes a select, which always computes both branches. Here, both are computed
    for all members only if at least one needs `compute`. Under differentiation, this is a plain `lax.cond`.

    `compute` must not close over traced values; `otherwise` should be cheap and return the same types.
    """
    leaves, structure = jax.tree.flatten(operands)

    def opened(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *leaves: function(*jax.tree.unflatten(structure, leaves))

    def choose(needed: Any, *leaves: Any) -> Any:
        return jax.lax.cond(needed, opened(compute), opened(otherwise), *leaves)

    run = custom_vmap(choose)

    @run.def_vmap
    def run_members(size: int, batched: Any, needed: Any, *leaves: Any) -> Any:
        del size
        in_axes = tuple(0 if b else None for b in batched)

        def each(needed: Any, *leaves: Any) -> Any:
            both = opened(compute)(*leaves), opened(otherwise)(*leaves)
            return jax.tree.map(lambda a, b: jnp.where(needed, a, b), *both)

        def none(needed: Any, *leaves: Any) -> Any:
            return opened(otherwise)(*leaves)

        result = lazily(jnp.any(needed), jax.vmap(each, in_axes), jax.vmap(none, in_axes), needed, *leaves)
        return result, jax.tree.map(lambda _: True, result)

    # `custom_vmap` has no reverse mode, so derivatives are those of a plain condition.
    differentiable = jax.custom_jvp(lambda needed, *leaves: run(needed, *leaves))
    differentiable.defjvp(lambda primals, tangents: jax.jvp(choose, primals, tangents))
    return differentiable(needed, *leaves)
