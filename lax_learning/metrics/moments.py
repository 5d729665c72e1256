"""Mean and variance of many gradients in the memory of a few, whatever their number."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from lax_learning._checks import check_count
from lax_learning._precision import raised


class Moments(NamedTuple):
    """What is kept of T gradients `g_t`, leaf by leaf.

    Fields:
      mean: `m = 1/T sum_t g_t`, a pytree as `g`.
      variance: `1/(T-1) sum_t (g_t - m)^2` of every entry, a pytree as `g`.
      distances: `|g_t - m|^2` of every leaf, `[T]`.
      along_mean: `(g_t - m) . m` of every leaf, `[T]`.
      along_reference: `(g_t - m) . r` of every leaf, `[T]`; zeros without a reference.
      reference: `r`, what `g` estimates, or None.

    The last three exist for standard errors; a compiled program that does not use them does not
    compute them.
    """

    mean: PyTree
    variance: PyTree
    distances: PyTree
    along_mean: PyTree
    along_reference: PyTree
    reference: PyTree | None

    @property
    def num_samples(self) -> int:
        """The number T of gradients."""
        return jax.tree.leaves(self.distances)[0].shape[0]

    def layers(self) -> tuple["Moments", ...]:
        """The moments of every layer, where the gradients are sequences with one entry a layer."""
        references = (None,) * len(self.mean) if self.reference is None else self.reference
        return tuple(Moments._make(row) for row in zip(*self[:-1], references, strict=True))


def stacked_moments(samples: PyTree, reference: PyTree | None = None) -> Moments:
    """The moments of gradients that lie in memory, stacked along a leading axis.

    Args:
      samples: a pytree whose leaves have a leading axis of T >= 3 gradients.
      reference: what they estimate, a pytree without that axis, or None.

    Returns:
      Their moments.

    Raises:
      ValueError: for fewer than three gradients.

    Example:
      >>> import jax.numpy as jnp
      >>> stacked_moments(jnp.array([1.0, 2.0, 6.0])).mean.tolist()
      3.0
    """
    return streamed_moments(lambda sample: sample, samples, reference)


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
      reference: what the gradients estimate, or None.
      chunk_size: how many are drawn at once; the largest divisor of T up to it is taken. By default 1 on a
        CPU, whose cache holds one gradient and not many, and 32 on an accelerator.

    Returns:
      The moments.

    Raises:
      ValueError: for fewer than three gradients, unequal leading axes, or a reference of other shapes.

    Example:
      >>> import jax
      >>> keys = jax.random.split(jax.random.key(0), 1000)
      >>> moments = streamed_moments(lambda key: jax.random.normal(key), keys)
      >>> bool(abs(moments.variance - 1) < 0.3)
      True

    References:
      Chan, Golub, LeVeque, Algorithms for computing the sample variance: analysis and recommendations,
      https://doi.org/10.1080/00031305.1983.10483115, 1983.
    """
    counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(xs)}
    if len(counts) != 1 or () in counts:
        got = [list(jnp.shape(leaf)) for leaf in jax.tree.leaves(xs)]
        raise ValueError(f"gradients: expected leaves with one leading axis of T, got shapes {got}")
    ((count,),) = counts
    check_count("number of gradients", count, 3)
    if chunk_size is None:
        chunk_size = 1 if jax.default_backend() == "cpu" else 32
    check_count("chunk_size", chunk_size)
    size = max(d for d in range(1, min(chunk_size, count) + 1) if count % d == 0)
    chunks = jax.tree.map(lambda leaf: leaf.reshape(count // size, size, *leaf.shape[1:]), xs)
    draws = jax.vmap(lambda x: jax.tree.map(widen, draw(x)))

    def merge(
        carry: tuple[Array, PyTree, PyTree], chunk: PyTree
    ) -> tuple[tuple[Array, PyTree, PyTree], None]:
        seen, mean, squares = carry
        drawn = draws(chunk)
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
        return (seen + size, mean, squares), None

    shapes = jax.eval_shape(draws, jax.tree.map(lambda leaf: leaf[0], chunks))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape[1:], s.dtype), shapes)
    if reference is not None:
        import chex  # takes a third of the library's own time to import

        chex.assert_trees_all_equal_shapes(
            zeros, reference, exception_type=ValueError, custom_message="gradients and reference"
        )
        reference = jax.tree.map(lambda zero, r: jnp.asarray(r, zero.dtype), zeros, reference)
    (_, mean, squares), _ = jax.lax.scan(merge, (jnp.zeros(()), zeros, zeros), chunks)

    def project(chunk: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        deviations = jax.tree.map(jnp.subtract, draws(chunk), jax.tree.map(lambda m: m[None], mean))
        return _projections(deviations, mean, reference)

    per_sample = jax.tree.map(jnp.ravel, jax.lax.map(project, chunks))
    variance = jax.tree.map(lambda s: s / (count - 1), squares)
    return Moments._make((mean, variance, *per_sample, reference))


def widen(leaf: Array) -> Array:
    """The array in float32 or wider, as moments are kept."""
    return jnp.asarray(leaf, raised(leaf))


def _projections(deviations: PyTree, mean: PyTree, reference: PyTree | None) -> tuple[PyTree, PyTree, PyTree]:
    """`|d_t|^2`, `d_t . m` and `d_t . r` of every leaf, for deviations with a leading axis."""

    def dot(d: Array, v: Array) -> Array:
        return jnp.sum(d * v, axis=tuple(range(1, d.ndim)))

    distances = jax.tree.map(lambda d: dot(d, d), deviations)
    along_mean = jax.tree.map(dot, deviations, mean)
    if reference is None:
        return distances, along_mean, jax.tree.map(jnp.zeros_like, distances)
    return distances, along_mean, jax.tree.map(dot, deviations, reference)
