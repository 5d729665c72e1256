"""Weight perturbation steps in the memory of inference: noise is regenerated wherever it is used."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from lax_learning import _checks as checks
from lax_learning._arrays import as_params
from lax_learning._precision import is_half, raised, rounded_at_random, widened
from lax_learning._sites._equations import vary_as
from lax_learning._sites._matrices import Matrix, direct_matrices
from lax_learning._sites._plan import Site
from lax_learning._sites._products import Bilinear
from lax_learning._sites._program import Program
from lax_learning._sites._run import Hooks
from lax_learning.estimators._draws import split_aux
from lax_learning.estimators._low_rank import Factors, like_of, product_of, sum_of_products, traced
from lax_learning.noise import Noise, NoiseLike, as_noise
from lax_learning.types import Key, Params


def in_place_step(
    loss_fn: Callable[..., Array],
    *,
    sigma: ArrayLike,
    num_samples: int = 1,
    noise: NoiseLike = "normal",
    rank: int | None = None,
    weight_decay: ArrayLike = 0.0,
) -> Callable[..., tuple[Array, Params]]:
    """Returns a step of gradient descent along a weight perturbation estimate that is never stored.

    `c_k = (L(w + sigma s_k) - L(w - sigma s_k)) / (2 sigma)`,
    `w <- (1 - eta decay) w - eta / K sum_k c_k s_k`

    This is SGD on `weight_perturbation(difference="central")` with decoupled weight decay, using little more
    memory than the loss itself. Noise is drawn where a product reads the weights, discarded, and drawn again
    for the update, which overwrites the weights: three times per step. Besides activities, a step keeps one
    matrix and its noise in memory, or two thin factors with `rank`; layers stacked under a `jax.lax.scan`
    count one by one. With several draws, the compiler may keep a copy of layers that are not stacked.

    Parameters that products do not read directly (embeddings, vectors, and those reshaped, normalised or used
    twice) are perturbed before a pass and cost a copy, or two with `rank`. In half precision, weights and
    noise are added in float32, so even a small sigma has an effect, and updates are rounded up or down at
    random so that their expectation is exact, also below the spacing of numbers.

    Args:
      loss_fn: `(params, *args) -> loss`, a scalar, or one loss per example, which are averaged; float32 or
        wider.
      sigma: standard deviation of the noise, in the units of the parameters; may be traced. In the precision
        of the weights and the loss, it has to be well above the spacing of numbers.
      num_samples: number K of draws, computed one after another.
      noise: "normal", "rademacher" or `(key, like) -> unit noise`, called for one matrix at a time; with
        `rank`, `like` is a pair `(a, b)` with a leading axis for a single draw.
      rank: rank of the noise on matrices, `a b^T / sqrt(rank)`; None for full noise.
      weight_decay: decay per unit of the learning rate, >= 0; may be traced.

    Returns:
      `step(key, params, *args, learning_rate) -> (value, params)`, compiled, where `value` is the mean loss
      of the 2 K passes. The params passed in are DONATED: their memory is reused for the result, and the
      arrays cannot be used again. In a larger compiled program, donate them there. In `jax.shard_map`, let
      `loss_fn` average over devices (`jax.lax.pmean`).

    Example:
      >>> step = in_place_step(lambda w, x: jnp.mean((x @ w) ** 2), sigma=1e-3, noise="rademacher")
      >>> w, x = jnp.ones((3, 2)), jnp.eye(3)
      >>> for i in range(200):
      ...     value, w = step(jax.random.key(i), w, x, learning_rate=0.2)
      >>> bool(value < 0.01)
      True

    References:
      Malladi et al., Fine-tuning language models with just forward passes,
      https://arxiv.org/abs/2305.17333, 2023; and the paper of `spsa`.
    """
    checks.check_positive("sigma", sigma)
    checks.check_samples("num_samples", num_samples)
    checks.check_not_negative("weight_decay", weight_decay)
    if rank is not None:
        checks.check_count("rank", rank)
    draw, checked = as_noise(noise, in_place=True), split_aux(loss_fn, False)

    def step(key: Key, params: Params, *args: Any, learning_rate: ArrayLike) -> tuple[Array, Params]:
        checks.check_key("key", key)
        checks.check_scalar("learning_rate", learning_rate)
        params = as_params(params)
        wide = vary_as(widened(params), args, key)
        program, arrays = traced(lambda params, args: checked(params, *args)[0], wide, (args,))
        (losses,) = program.outputs
        if is_half(losses.dtype):
            raise TypeError(f"loss_fn: expected a loss in float32 or wider, got {checks.describe(losses)}")
        checks.check_resolved("sigma", sigma, losses.dtype)
        by, rate = jnp.asarray(sigma, losses.dtype), jnp.asarray(learning_rate, losses.dtype)
        direct = direct_matrices(program)
        leaves = [_Leaf(w, direct.get(i), draw, rank) for i, w in enumerate(jax.tree.leaves(params))]

        def slope_and_value(keys: list[Array]) -> tuple[Array, Array]:
            # Factors leave the weights as they are, so both passes read them once.
            of_sign, side_by_side = partial(_loss, program, arrays, leaves, keys), 1 if rank is None else 2
            losses = jax.lax.map(of_sign, jnp.stack([by, -by]), batch_size=side_by_side)
            return jnp.mean(losses[0] - losses[1]) / (2 * by), jnp.mean(losses)

        for_noise, for_rounding = jax.random.split(key)
        by_leaf = jax.random.split(for_noise, (len(leaves), num_samples))
        keys = [leaf.keys(of_draws) for leaf, of_draws in zip(leaves, by_leaf, strict=True)]
        slopes, values = jax.lax.map(slope_and_value, keys)
        kept, credits = 1 - rate * weight_decay, -rate / num_samples * slopes
        moved, before, roundings = [], slopes, jax.random.split(for_rounding, len(leaves))
        for leaf, of_leaf, rounding in zip(leaves, keys, roundings, strict=True):
            before = leaf.moved(_after(of_leaf, before), rounding, kept, credits)
            moved.append(before)
        return jnp.mean(values), jax.tree.unflatten(jax.tree.structure(params), moved)

    return jax.jit(step, donate_argnums=1)


class _Seed(NamedTuple):
    """Noise on a matrix, given by the key that it is drawn from; stacked matrices have one key each."""

    key: Array


class _Leaf(NamedTuple):
    """A leaf of params and its noise: matrices stacked along its first axes, or a single piece."""

    w: Array
    matrix: Matrix | None  # how products read it; None for a single piece, which is perturbed as a whole
    draw: Noise
    rank: int | None

    @property
    def stacked(self) -> tuple[int, ...]:
        return self.w.shape[: self.matrix.stacked] if self.matrix else ()

    @property
    def low_rank(self) -> Matrix | None:
        """One of the stacked matrices, if its noise is of low rank."""
        return self.matrix._replace(stacked=0) if self.matrix and self.rank else None

    def keys(self, draws: Array) -> Array:
        """Returns one key per draw and matrix, `[draws, *stacked]`."""
        return jax.vmap(lambda key: jax.random.split(key, self.stacked))(draws) if self.stacked else draws

    def noise(self, key: Key) -> Any:
        """Returns noise on one matrix: an array, or the factors of one draw."""
        like = jax.ShapeDtypeStruct(self.w.shape[len(self.stacked) :], raised(self.w))
        if self.rank is not None and self.low_rank:
            like = like_of(like, self.low_rank, 1, self.rank)
        return self.draw(key, like)

    def moved(self, keys: Array, rounding: Key, kept: Array, credits: Array) -> Array:
        """Returns `kept w + sum_k credits_k noise_k`, computed one matrix at a time."""
        number = math.prod(self.stacked)
        keys, roundings = keys.reshape(len(credits), number), jax.random.split(rounding, number)

        def add(total: Array, draw: tuple[Key, Array]) -> tuple[Array, None]:
            key, credit = draw
            return total + credit.astype(total.dtype) * self.noise(key), None

        def at(i: Array, ws: Array) -> Array:
            wide = ws[i].astype(raised(ws))
            before = kept.astype(wide.dtype) * wide
            if self.low_rank:
                noise = jax.tree.map(lambda leaf: leaf[:, 0], jax.vmap(self.noise)(keys[:, i]))
                after = before + sum_of_products(credits, noise, self.low_rank, wide.shape)
            else:
                after, _ = jax.lax.scan(add, before, (keys[:, i], credits))
            return ws.at[i].set(rounded_at_random(roundings[i], after, ws.dtype))

        ws = self.w.reshape(number, *self.w.shape[len(self.stacked) :])
        return jax.lax.fori_loop(0, number, at, ws).reshape(self.w.shape)


def _loss(program: Program, arrays: Any, leaves: list[_Leaf], keys: list[Array], by: Array) -> Array:
    """Returns the losses with the leaves moved by a multiple of their noise."""

    def product(site: Site, op: Bilinear, w: Any, x: Any, partner: Any, feed: Any) -> Any:
        if not isinstance(partner, _Seed):
            return op(w, x)
        (leaf,) = site.leaves
        noise = leaves[leaf].noise(_after(partner.key, x, by))
        w, noise = vary_as((w.astype(raised(w)), noise), x)
        if isinstance(noise, Factors):
            z, (a, b) = op(w, x), noise
            return z + by.astype(z.dtype) * product_of(site, op, x, Factors(a[0], b[0]))
        return op(w + by.astype(w.dtype) * noise, x)

    given, seeds = [], []
    for leaf, key in zip(leaves, keys, strict=True):
        if leaf.matrix is None:
            noise = leaf.noise(_after(key, by))
            given.append(leaf.w.astype(noise.dtype) + by.astype(noise.dtype) * noise)
        else:
            given.append(leaf.w)
        seeds.append(_Seed(key) if leaf.matrix else None)
    return program.run(given, arrays, Hooks(product=product), feedback=seeds)[0]


def _after(key: Array, *values: Array) -> Array:
    """Returns the key in a form that cannot be used before the values are computed.

    The compiler reorders draws freely, and drops barriers before it plans the memory, so it would draw the
    noise of all layers at once and keep it. Therefore, a 0 computed from the values is added to the key.
    """
    total = sum(value.reshape(-1)[-1].astype(jnp.float32) for value in values if value.size)
    bits = jax.lax.bitcast_convert_type(total, jnp.uint32)
    zero = jax.lax.population_count(bits) >> np.uint32(6)  # counts are at most 32
    return jax.random.wrap_key_data(jax.random.key_data(key) + zero, impl=jax.random.key_impl(key))
