"""Mean and variance of many gradients in the memory of a few, whatever their number."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from lax_learning._arrays import as_real_leaves, check_same_structure
from lax_learning._checks import as_array, check_callable, check_count
from lax_learning._scaling import divided, scale_of
from lax_learning.metrics.alignment import by_prefix


class ScaledMoments(NamedTuple):
    """The moments of `g / scale`, with the fields of `Moments`, all within range."""

    mean: PyTree
    variance: PyTree
    distances: PyTree
    along_mean: PyTree
    along_reference: PyTree


class Moments(NamedTuple):
    """Mean and variance of T gradients `g_t`, leaf by leaf, and the numbers that standard errors need.

    The squares of a gradient may leave the range of its type where the gradient does not. Kept are therefore
    the moments of `g / scale`; the properties give those of `g`.

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
        """`m = 1/T sum_t g_t`, a pytree as `g`."""
        return jax.tree.map(_times, self.scaled.mean, self.scale)

    @property
    def variance(self) -> PyTree:
        """`1/(T-1) sum_t (g_t - m)^2` of every entry, a pytree as `g`."""
        return self._times_square(self.scaled.variance)

    @property
    def distances(self) -> PyTree:
        """`|g_t - m|^2` of every leaf, `[T]`."""
        return self._times_square(self.scaled.distances)

    @property
    def along_mean(self) -> PyTree:
        """`(g_t - m) . m` of every leaf, `[T]`."""
        return self._times_square(self.scaled.along_mean)

    @property
    def along_reference(self) -> PyTree:
        """`(g_t - m) . r` of every leaf, `[T]`; zeros without a reference."""
        return self._times_square(self.scaled.along_reference)

    @property
    def num_samples(self) -> int:
        """The number T of gradients."""
        return jax.tree.leaves(self.scaled.distances)[0].shape[-1]

    def parts(self, depth: int | None = None) -> dict[str, "Moments"]:
        """The moments of every leaf by path, or of the leaves whose paths begin alike, as `by_path`."""
        scales, *fields = (by_prefix(field, depth) for field in (self.scale, *self.scaled))
        references = None if self.reference is None else by_prefix(self.reference, depth)
        return {
            path: Moments(scale, ScaledMoments(*(f[path] for f in fields)), references and references[path])
            for path, scale in scales.items()
        }

    def _times_square(self, tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf, s: _times(_times(leaf, s), s), tree, self.scale)


def _times(leaf: Any, scale: Any) -> Any:
    """The product with a scalar, or after `vmap` with one scalar for each of the leading axes."""
    return leaf * scale.reshape(scale.shape + (1,) * (leaf.ndim - scale.ndim))


def stacked_moments(samples: PyTree, reference: PyTree | None = None) -> Moments:
    """The moments of gradients that lie in memory, stacked along a leading axis.

    Args:
      samples: a pytree whose leaves have a leading axis of T >= 3 gradients.
      reference: the gradient that they estimate, a pytree without that axis, or None.

    Example:
      >>> stacked_moments(jnp.array([1.0, 2.0, 6.0])).mean.tolist()
      3.0
    """
    samples = _as_arrays(samples)
    if jax.tree.leaves(samples):
        jax.eval_shape(lambda leaves: as_real_leaves("gradients", leaves), samples)
    return _streamed("gradients", lambda sample: sample, samples, reference, None, divided)


def streamed_moments(
    draw: Callable[[Any], PyTree],
    xs: PyTree,
    reference: PyTree | None = None,
    *,
    chunk_size: int | None = None,
) -> Moments:
    """The moments of `draw(x)` over the leading axis of `xs`, in memory of `chunk_size` gradients.

    Chunks are merged by the update of Chan, Golub and LeVeque. A second pass draws the same gradients
    again for the standard errors, if these are used.

    Args:
      draw: `x -> gradients`, pure: it is called twice with every x.
      xs: a pytree whose leaves have a leading axis of T >= 3, for example keys.
      reference: the gradient that they estimate, or None.
      chunk_size: how many are drawn at once; the largest divisor of T up to it is taken. By default 1 on a
        CPU, whose cache holds one gradient and not many, and 32 on an accelerator.

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
    # Where XLA flushes numbers below the smallest normal one to 0, its results hold none of them.
    return _streamed("draw(x)", draw, xs, reference, chunk_size, lambda g, scale: g * (1 / scale))


def _streamed(
    name: str,
    draw: Callable[[Any], PyTree],
    xs: PyTree,
    reference: PyTree | None,
    chunk_size: int | None,
    divide: Callable[[Array, Array], Array],
) -> Moments:
    xs = _as_arrays(xs)
    count = count_of("gradients", xs, "number of gradients")
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

    def merge(carry: tuple[Array, PyTree, PyTree, PyTree], chunk: PyTree) -> tuple[Any, None]:
        seen, scale, mean, squares = carry
        drawn = draws(chunk)
        before, scale = scale, jax.tree.map(lambda s, g: jnp.maximum(s, scale_of(g)), scale, drawn)
        drawn = jax.tree.map(divide, drawn, scale)
        ratio = jax.tree.map(jnp.divide, before, scale)
        mean = jax.tree.map(jnp.multiply, mean, ratio)
        squares = jax.tree.map(lambda total, r: total * r * r, squares, ratio)
        share = size / (seen + size)
        # Sums of differences from the first draw: entries that never vary get a variance of exactly 0.
        means = jax.tree.map(lambda g: g[0] + jnp.mean(g - g[:1], axis=0), drawn)
        steps = jax.tree.map(jnp.subtract, means, mean)
        squares = jax.tree.map(
            lambda total, g, m, step: total
            + jnp.sum(jnp.square(g - m), axis=0)
            + jnp.square(step) * (seen * share).astype(m.dtype),
            squares, drawn, means, steps,
        )  # fmt: skip
        mean = jax.tree.map(lambda m, step: m + step * share.astype(m.dtype), mean, steps)
        return (seen + size, scale, mean, squares), None

    (_, scale, mean, squares), _ = jax.lax.scan(merge, (jnp.zeros(()), scale, zeros, zeros), chunks)
    scaled_reference = None if reference is None else jax.tree.map(divided, reference, scale)

    def project(chunk: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        """`|d_t|^2`, `d_t . m` and `d_t . r` of every leaf, for the deviations `d_t` of a chunk."""
        deviations = jax.tree.map(lambda g, s, m: divide(g, s) - m[None], draws(chunk), scale, mean)
        distances = jax.tree.map(_dots, deviations, deviations)
        if scaled_reference is None:
            along_reference = jax.tree.map(jnp.zeros_like, distances)
        else:
            along_reference = jax.tree.map(_dots, deviations, scaled_reference)
        return distances, jax.tree.map(_dots, deviations, mean), along_reference

    per_sample = jax.tree.map(jnp.ravel, jax.lax.map(project, chunks))
    variance = jax.tree.map(lambda s: s / (count - 1), squares)
    return Moments(scale, ScaledMoments(mean, variance, *per_sample), reference)


def _as_arrays(xs: PyTree) -> PyTree:
    """Numbers and NumPy arrays as arrays of JAX; those pass, also keys."""

    def of_leaf(path: Any, leaf: Any) -> Any:
        is_array = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
        return leaf if is_array else as_array(f"gradients{jax.tree_util.keystr(path)}", leaf)

    return jax.tree_util.tree_map_with_path(of_leaf, xs)


def count_of(name: str, xs: PyTree, number: str) -> int:
    """The size T of the leading axes; raises unless all arrays have one of the same size, at least 3."""
    shapes = [leaf.shape for leaf in jax.tree.leaves(xs)]
    counts = {shape[:1] for shape in shapes}
    if len(counts) != 1 or () in counts:
        got = f"shapes {[list(shape) for shape in shapes]}" if shapes else repr(xs)
        raise ValueError(f"{name}: expected leaves with one leading axis of T, got {got}")
    ((count,),) = counts
    check_count(number, count, 3)
    return count


def _dots(deviations: Array, v: Array) -> Array:
    """Products of deviations with v, or with one of as many, over all axes but the first."""
    return jnp.sum(deviations * v, axis=tuple(range(1, deviations.ndim)))
