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

    def choose(needed: Any, *operands: Any) -> Any:
        return jax.lax.cond(needed, compute, otherwise, *operands)

    run = custom_vmap(choose)

    @run.def_vmap
    def run_members(size: int, batched: Any, needed: Any, *operands: Any) -> Any:
        del size
        in_axes = jax.tree.map(lambda b: 0 if b else None, tuple(batched))

        def each(needed: Any, *operands: Any) -> Any:
            both = compute(*operands), otherwise(*operands)
            return jax.tree.map(lambda a, b: jnp.where(needed, a, b), *both)

        def none(needed: Any, *operands: Any) -> Any:
            return otherwise(*operands)

        result = lazily(jnp.any(needed), jax.vmap(each, in_axes), jax.vmap(none, in_axes), needed, *operands)
        return result, jax.tree.map(lambda _: True, result)

    # `custom_vmap` has no reverse mode, so derivatives are those of a plain condition.
    differentiable = jax.custom_jvp(lambda needed, *operands: run(needed, *operands))
    differentiable.defjvp(lambda primals, tangents: jax.jvp(choose, primals, tangents))
    return differentiable(needed, *operands)
