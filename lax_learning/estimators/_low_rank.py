"""Weight perturbation with low-rank noise: many draws in one pass, in the memory of their factors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lax_learning._checks import describe
from lax_learning._precision import is_half
from lax_learning._sites import _equations as equations
from lax_learning._sites._equations import resized, vary_as
from lax_learning._sites._matrices import Matrix, direct_matrices
from lax_learning._sites._plan import Site
from lax_learning._sites._products import Bilinear
from lax_learning._sites._program import Program
from lax_learning._sites._run import Hooks
from lax_learning.models import Model
from lax_learning.noise import Noise
from lax_learning.types import Key, Params

DRAWS_ON_CPU = 16
"""Draws side by side on a CPU, so few that their activities stay in cache; accelerators run all at once."""


class Factors(NamedTuple):
    """Noise `a b^T / sqrt(rank)` on a parameter."""

    a: Any  # axes of the parameter, but of length `rank` for its last column axis and 1 for other columns
    b: Any  # column axes of the parameter, followed by an axis of length `rank`


def low_rank_mean(
    loss_fn: Callable[..., Array],
    params: Params,
    args: Any,
    clean: Array | None,
    *,
    key: Key,
    step: Array,
    rank: int,
    num_samples: int,
    noise: Noise,
    fitness: str,
) -> Params:
    """Returns the mean over draws of `noise / step`, weighted by the change in fitness due to `step * noise`.

    `clean` is the loss without noise, for forward differences; None for central differences.
    """
    # In `jax.shard_map`, the program is traced for params that vary over devices as the data do.
    params = vary_as(params, args, key, step)
    program, arrays = traced(loss_fn, params, args)
    matrices, parameters = direct_matrices(program), program.split.parameters
    likes = [like_of(leaf, matrices.get(i), num_samples, rank) for i, leaf in enumerate(parameters)]
    drawn = vary_as(noise(key, likes), params)

    def losses(step: Array) -> Array:
        def of_draw(drawn: list[Any]) -> Array:
            given = zip(parameters, drawn, strict=True)
            moved = [w if isinstance(n, Factors) else w + step.astype(w.dtype) * n for w, n in given]
            partners = [n if isinstance(n, Factors) else None for n in drawn]

            def product(site: Site, op: Bilinear, w: Any, x: Any, partner: Any, feed: Any) -> Any:
                z = op(w, x)
                if not isinstance(partner, Factors):
                    return z
                return z + step.astype(z.dtype) * product_of(site, op, x, partner)

            return program.run(moved, arrays, Hooks(product=product), feedback=partners)[0]

        side_by_side = min(num_samples, DRAWS_ON_CPU) if jax.default_backend() == "cpu" else num_samples
        return jax.lax.map(of_draw, drawn, batch_size=side_by_side)

    other = losses(-step) if clean is None else clean
    change = _changes(losses(step), other, fitness, central=clean is None)
    credits = change / (step * num_samples)
    return program.split.gradients([
        sum_of_products(credits, n, matrices[i], w.shape) if isinstance(n, Factors)
        else jnp.tensordot(credits.astype(w.dtype), n, 1)
        for i, (w, n) in enumerate(zip(parameters, drawn, strict=True))
    ])  # fmt: skip


def traced(loss_fn: Callable[..., Array], params: Params, args: Any) -> tuple[Program, Any]:
    """Returns the program of a loss, and its data: the arrays in args and those that it closes over."""
    for path, leaf in jax.tree.leaves_with_path(params):
        if is_half(leaf.dtype):
            at = f"params{jax.tree_util.keystr(path)}"
            raise TypeError(f"{at}: expected float32 or wider with a rank, got {describe(leaf)}")
    leaves, structure = jax.tree.flatten(args)
    arrays = {i: jnp.asarray(leaf) for i, leaf in enumerate(leaves) if hasattr(leaf, "dtype")}

    def apply(params: Params, arrays: dict[int, Any]) -> Array:
        return loss_fn(params, *jax.tree.unflatten(structure, [*map(arrays.get, range(len(leaves)), leaves)]))

    body, _ = equations.trace(apply, params, arrays)

    def opened(params: Params, data: Any) -> Array:
        arrays, constants = data
        (loss,) = equations.evaluate(body, constants, jax.tree.leaves((params, arrays)))
        return loss

    data = arrays, [jnp.asarray(constant) for constant in body.consts]
    return Program(Model(opened), params, data), data


def like_of(leaf: Array | jax.ShapeDtypeStruct, matrix: Matrix | None, number: int, rank: int) -> Any:
    """Returns the shapes of noise on a parameter for a number of draws."""
    if matrix is None:
        return jax.ShapeDtypeStruct((number, *leaf.shape), leaf.dtype)
    stacked, rows, columns = matrix
    lead, shape = leaf.shape[:stacked], leaf.shape[stacked:]
    a = [n if axis in rows else rank if axis == columns[-1] else 1 for axis, n in enumerate(shape)]
    b = [*(shape[axis] for axis in columns), rank]
    return Factors(*(jax.ShapeDtypeStruct((number, *lead, *of), leaf.dtype) for of in (a, b)))


def product_of(site: Site, op: Bilinear, x: Any, factors: Factors) -> Array:
    """Returns `op(a b^T / sqrt(rank), x)`, computed from the factors."""
    assert site.layout is not None
    place, number = site.layout.place, len(site.layout.columns)
    of_a = jnp.squeeze(op(factors.a, x), tuple(range(place, place + number - 1)))
    z = jnp.tensordot(of_a, factors.b * factors.b.shape[-1] ** -0.5, ((place,), (number,)))
    return jnp.moveaxis(z, range(-number, 0), range(place, place + number))


def sum_of_products(credits: Array, factors: Factors, matrix: Matrix, shape: tuple[int, ...]) -> Array:
    """Returns `sum_k c_k a_k b_k^T / sqrt(rank)` in the shape of the parameter, by one product."""
    a, rank = jax.vmap(matrix.rows_of)(factors.a), factors.b.shape[-1]
    b = factors.b.reshape(*a.shape[:2], -1, rank)
    weighted = (credits * rank**-0.5).astype(a.dtype)[:, None, None, None] * a
    total = jnp.einsum("klnr,klmr->lnm", weighted, b)
    return jax.linear_transpose(matrix.rows_of, resized(total, shape))(total)[0]


def _z_scored(losses: Array) -> Array:
    spread = jnp.std(losses)
    return (losses - jnp.mean(losses)) / jnp.where(spread > 0, spread, 1)


def _ranked(losses: Array) -> Array:
    ordered = jnp.sort(losses)
    below, not_above = (jnp.searchsorted(ordered, losses, side=side) for side in ("left", "right"))
    ranks = (below + not_above - 1).astype(losses.dtype) / 2  # equal losses share the mean of their ranks
    return jnp.where(jnp.any(jnp.isnan(losses)), jnp.nan, ranks / (len(losses) - 1) - 0.5)


_SHAPED: dict[str, Callable[[Array], Array]] = {"z-scored": _z_scored, "ranked": _ranked}
FITNESS = ("loss", *_SHAPED)


def _changes(plus: Array, other: Array, fitness: str, *, central: bool) -> Array:
    """Returns the fitness of every draw, or its change in loss; if central, half the difference of a pair."""
    half = 0.5 if central else 1.0
    if fitness == "loss":
        return half * _mean(plus - other.astype(plus.dtype))
    if not central:
        return _SHAPED[fitness](_mean(plus))
    shaped = _SHAPED[fitness](jnp.concatenate([_mean(plus), _mean(other)]))
    return half * (shaped[: len(plus)] - shaped[len(plus) :])


def _mean(losses: Array) -> Array:
    return jnp.mean(losses, axis=range(1, losses.ndim))
