"""Mean and variance of any number of gradients, in the memory of a few."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from lax_learning._arrays import as_arrays, as_real_leaves, check_same_structure
from lax_learning._checks import check_callable, check_count
from lax_learning._scaling import divided, scale_of
from lax_learning.metrics.alignment import by_prefix


class ScaledMoments(NamedTuple):
    """The moments of `g / scale`, as in `Moments`; none overflows."""

    mean: PyTree
    variance: PyTree
    distances: PyTree
    along_mean: PyTree
    along_reference: PyTree


class Moments(NamedTuple):
    """Mean and variance of T gradients `g_t` for every leaf, and the sums needed for standard errors.

    The square of a gradient may overflow or underflow even if the gradient does not. Therefore the moments of
    `g / scale` are stored; the properties return those of `g`.

    Fields:
      scale: a power of two for every leaf.
      scaled: the moments of `g / scale`.
      reference: `r`, the gradient that `g` estimates, or None.
    """

    scale: PyTree
    scaled: ScaledMoments
    reference: PyTree | None

    @property
    def mean(self) -> PyTree:
        """`m = 1/T sum_t g_t`, with the structure of `g`."""
        return jax.tree.map(_times, self.scaled.mean, self.scale)

    @property
    def variance(self) -> PyTree:
        """`1/(T-1) sum_t (g_t - m)^2` for every entry, with the structure of `g`."""
        return self._times_square(self.scaled.variance)

    @property
    def distances(self) -> PyTree:
        """`|g_t - m|^2` for every leaf, `[T]`."""
        return self._times_square(self.scaled.distances)

    @property
    def along_mean(self) -> PyTree:
        """`(g_t - m) . m` for every leaf, `[T]`."""
        return self._times_square(self.scaled.along_mean)

    @property
    def along_reference(self) -> PyTree:
        """`(g_t - m) . r` for every leaf, `[T]`; zeros without a reference."""
        return self._times_square(self.scaled.along_reference)

    @property
    def num_samples(self) -> int:
        """The number T of gradients."""
        return jax.tree.leaves(self.scaled.distances)[0].shape[-1]

    def parts(self, depth: int | None = None) -> dict[str, "Moments"]:
        """Returns the moments of every leaf, or of groups of leaves, by path; `depth` is as for `by_path`."""
        scales, *fields = (by_prefix(field, depth) for field in (self.scale, *self.scaled))
        references = None if self.reference is None else by_prefix(self.reference, depth)
        return {
            path: Moments(scale, ScaledMoments(*(f[path] for f in fields)), references and references[path])
            for path, scale in scales.items()
        }

    def _times_square(self, tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf, s: _times(_times(leaf, s), s), tree, self.scale)


def _times(leaf: Any, scale: Any) -> Any:
    """Multiplies by a scalar, or after `vmap` by one scalar for each entry of the leading axes."""
    return leaf * scale.reshape(scale.shape + (1,) * (leaf.ndim - scale.ndim))


def stacked_moments(samples: PyTree, reference: PyTree | None = None) -> Moments:
    """Computes the moments of gradients that are stacked along a leading axis.

    Args:
      samples: a pytree whose leaves have a leading axis of T >= 3 gradients.
      reference: the gradient that they estimate, a pytree without this axis, or None.

    Example:
      >>> stacked_moments(jnp.array([1.0, 2.0, 6.0])).mean.tolist()
      3.0
    """
    samples = as_arrays("gradients", samples)
    jax.eval_shape(lambda leaves: as_real_leaves("gradients", leaves), samples)
    return _streamed("gradients", lambda sample: sample, samples, reference, None, divided)


def streamed_moments(
    draw: Callable[[Any], PyTree],
    xs: PyTree,
    reference: PyTree | None = None,
    *,
    chunk_size: int | None = None,
) -> Moments:
    """Computes the moments of `draw(x)` over the leading axis of `xs`, with `chunk_size` gradients in memory.

    Chunks are merged by the update of Chan, Golub and LeVeque. A second pass draws the same gradients
    again for the standard errors, if these are used.

    Args:
      draw: `x -> gradients`, a pure function: it is called twice with every x.
      xs: a pytree whose leaves have a leading axis of T >= 3, for example keys.
      reference: the gradient that they estimate, or None.
      chunk_size: number of gradients drawn at once, rounded down to a divisor of T. By default 1 on a CPU,
        whose cache has room for one gradient but not many, and 32 on an accelerator.

    Example:
      >>> keys = jax.random.split(jax.random.key(0), 1000)
      >>> moments = streamed_moments(lambda key: jax.random.normal(key), keys)
      >>> bool(abs(moments.variance - 1) < 0.3)
      True

    References:
      Chan, Golub, LeVeque, Algorithms for computing the sample variance,
      https://doi.org/10.1080/00031305.1983.10483115, 1983.
    """
    check_callable("draw", draw, "a function x -> gradients", num_arguments=1)
    # If XLA flushes subnormal numbers to 0, the draws contain none, so a plain product suffices.
    return _streamed("draw(x)", draw, xs, reference, chunk_size, lambda g, scale: g * (1 / scale))


def _streamed(
    name: str,
    draw: Callable[[Any], PyTree],
    xs: PyTree,
    reference: PyTree | None,
    chunk_size: int | None,
    divide: Callable[[Array, Array], Array],
) -> Moments:
    xs = as_arrays("gradients", xs)
    count = count_of("gradients", xs)
    if chunk_size is None:
        chunk_size = 1 if jax.default_backend() == "cpu" else 32
    check_count("chunk_size", chunk_size)
    size = max(d for d in range(1, min(chunk_size, count) + 1) if count % d == 0)
    chunks = jax.tree.map(lambda leaf: leaf.reshape(count // size, size, *leaf.shape[1:]), xs)
    draws = jax.vmap(lambda x: as_real_leaves(name, draw(x)))

    shapes = jax.eval_shape(draws, jax.tree.map(lambda leaf: leaf[0], chunks))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape[1:], s.dtype), shapes)
    if reference is not None:
        reference = as_real_leaves("reference", reference)
        check_same_structure(("reference", "the gradients"), (reference, zeros))
        reference = jax.tree.map(lambda zero, r: r.astype(zero.dtype), zeros, reference)
    scale = jax.tree.map(scale_of, zeros if reference is None else reference)
    begin = jax.tree.map(lambda scale, zero: (scale, zero, zero), scale, zeros)

    def merge(carry: tuple[Array, PyTree], chunk: PyTree) -> tuple[Any, None]:
        seen, totals = carry
        share = size / (seen + size)

        def of_leaf(g: Array, totals: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            before, mean, squares = totals
            scale = jnp.maximum(before, scale_of(g))
            g, ratio = divide(g, scale), before / scale
            mean, squares = mean * ratio, squares * ratio * ratio
            # Differences from the first draw are summed, so that constant entries have a variance of 0.
            mean_of_chunk = g[0] + jnp.mean(g - g[:1], axis=0)
            step = mean_of_chunk - mean
            squares += jnp.sum(jnp.square(g - mean_of_chunk), axis=0)
            squares += jnp.square(step) * (seen * share).astype(g.dtype)
            return scale, mean + step * share.astype(g.dtype), squares

        return (seen + size, jax.tree.map(of_leaf, draws(chunk), totals)), None

    (_, totals), _ = jax.lax.scan(merge, (jnp.zeros(()), begin), chunks)
    scale, mean, squares = jax.tree.transpose(jax.tree.structure(zeros), None, totals)
    scaled_references = () if reference is None else (jax.tree.map(divided, reference, scale),)

    def project(chunk: PyTree) -> PyTree:
        """Returns `|d_t|^2`, `d_t . m` and `d_t . r` of every leaf, for the deviations `d_t` of a chunk."""

        def of_leaf(g: Array, scale: Array, mean: Array, *reference: Array) -> tuple[Array, Array, Array]:
            deviations = divide(g, scale) - mean[None]
            distances = _dots(deviations, deviations)
            along_reference = _dots(deviations, *reference) if reference else jnp.zeros_like(distances)
            return distances, _dots(deviations, mean), along_reference

        return jax.tree.map(of_leaf, draws(chunk), scale, mean, *scaled_references)

    per_sample = jax.tree.map(jnp.ravel, jax.lax.map(project, chunks))
    fields = jax.tree.transpose(jax.tree.structure(zeros), None, per_sample)
    variance = jax.tree.map(lambda s: s / (count - 1), squares)
    return Moments(scale, ScaledMoments(mean, variance, *fields), reference)


def count_of(name: str, xs: PyTree) -> int:
    """Returns the size T of the leading axes; raises unless it is the same for all arrays, and at least 3."""
    counts = {leaf.shape[:1] for leaf in jax.tree.leaves(xs)}
    if len(counts) != 1 or () in counts:
        shapes = [list(leaf.shape) for leaf in jax.tree.leaves(xs)]
        raise ValueError(f"{name}: expected leaves with the same leading axis of size T, got shapes {shapes}")
    ((count,),) = counts
    check_count(f"number of {name}", count, 3)
    return count


def _dots(deviations: Array, v: Array) -> Array:
    """Sums deviations times v over all axes but the first; v may be one vector, or one per deviation."""
    return jnp.sum(deviations * v, axis=tuple(range(1, deviations.ndim)))
