"""Quality of gradient estimates: signal-to-noise ratio, bias and variance, with standard errors."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from lax_learning._checks import check_choice, check_positive
from lax_learning._precision import raised
from lax_learning._scaling import divided, norm, scale_of
from lax_learning.metrics.moments import Moments, stacked_moments


class Estimate(NamedTuple):
    """An estimate and its standard error."""

    value: Array
    standard_error: Array


class SNR(NamedTuple):
    """Signal-to-noise ratio.

    Fields:
      total: ratio of the whole gradient, an `Estimate`.
      entries: ratio of every entry, with the structure of the gradient; 0 for dead entries.
      num_dead: number of dead entries, which never vary; they are excluded from `total`.
    """

    total: Estimate
    entries: PyTree
    num_dead: Array


class BiasVariance(NamedTuple):
    """Decomposition of the mean squared error of an estimator; each field is an `Estimate`.

    Fields:
      squared_bias: `|E g - r|^2`; its own bias is removed, so it may be negative.
      variance: `tr Cov g`.
      mean_squared_error: `E |g - r|^2 = squared_bias + variance`.
      relative_bias: `squared_bias / |r|^2`.
      relative_variance: `variance / |r|^2`.
    """

    squared_bias: Estimate
    variance: Estimate
    mean_squared_error: Estimate
    relative_bias: Estimate
    relative_variance: Estimate


def _as_moments(samples: Moments | PyTree, reference: PyTree | None = None) -> Moments:
    if isinstance(samples, Moments):
        return samples
    leaves = jax.tree.leaves(samples, is_leaf=lambda node: isinstance(node, Moments))
    if any(isinstance(leaf, Moments) for leaf in leaves):
        got = f"a {type(samples).__name__} of Moments"
        raise ValueError(f"gradients: expected stacked gradients or one Moments, got {got}")
    return stacked_moments(samples, reference)


def _in_one_scale(moments: Moments) -> tuple[Array, Callable[[PyTree], Array]]:
    """Returns the largest scale, and a function that sums squares over leaves in units of this scale."""
    scales = jax.tree.leaves(moments.scale)
    dtype = raised(*scales)
    largest = jnp.max(jnp.stack([scale.astype(dtype) for scale in scales]))

    def total(tree: PyTree) -> Array:
        shares = [scale.astype(dtype) / largest for scale in scales]
        leaves = zip(jax.tree.leaves(tree), shares, strict=True)
        return jax.tree.reduce(jnp.add, [leaf.astype(dtype) * share * share for leaf, share in leaves])

    return largest, total


def _sums(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.sum, tree)


def _square_norms(tree: PyTree) -> PyTree:
    return _sums(jax.tree.map(jnp.square, tree))


def jackknife(value: Array, left_out: Array) -> Estimate:
    """Returns an estimate with `SE^2 = (T-1)/T sum_t (value without t - their mean)^2`."""
    count = left_out.shape[0]
    differences = left_out - jnp.mean(left_out)
    scale = scale_of(differences)
    return Estimate(value, ((count - 1) / count) ** 0.5 * norm(divided(differences, scale)) * scale)


def _signal_and_noise(
    moments: Moments, total: Callable[[PyTree], Array], offset: Array, along: Array
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Returns `|m - r|^2`, debiased, and `tr Cov`, each of all T gradients and with each left out, `[T]`.

    Computed in closed form from `offset = |m - r|^2` and `along = (g_t - m) . (m - r)`.
    """
    count, distances = moments.num_samples, total(moments.scaled.distances)
    noise = total(_sums(moments.scaled.variance))
    offsets = offset - 2 * along / (count - 1) + distances / (count - 1) ** 2
    noises = (noise * (count - 1) - distances * count / (count - 1)) / (count - 2)
    # If one gradient has all the noise, only rounding errors remain without it.
    noises = jnp.where(noises < 16 * jnp.finfo(noises.dtype).eps * noise, 0, noises)
    return (offset - noise / count, offsets - noises / (count - 1)), (noise, noises)


def _ratio(signal: Array, noise: Array) -> Array:
    """Returns signal / noise: 0 without noise, NaN if either is NaN."""
    nothing = noise <= 0
    return jnp.where(nothing, 0.0, signal / jnp.where(nothing, 1, noise))


def snr(
    samples: Moments | PyTree, *, variant: Literal["debiased", "tutorial"] = "debiased", epsilon: float = 1e-3
) -> SNR:
    """Computes the signal-to-noise ratio of gradients, across examples or across draws.

    "debiased": `(m^2 - s^2/T) / s^2` per entry and `(|m|^2 - tr Cov/T) / tr Cov` in total, so that pure
    noise gives 0 on average, and the scale of the gradient does not matter. The jackknife standard error is
    never too small, and up to sqrt(2) times too large if noise hides the signal.

    "tutorial": `mean(|m| / (s + epsilon))` over all entries, as in the tutorial. Depends on the scale of the
    gradient; pure noise gives `sqrt(2 / (pi T))`, 0.0252 at T = 1000. Its standard error is NaN: one set of
    gradients does not determine it; use several seeds.

    If an entry is NaN or infinite in any gradient, its ratio and the total are NaN.

    Args:
      samples: `Moments`, or a pytree of gradients stacked along a leading axis of T >= 3. For one layer,
        pass one of `moments.parts(...)`.
      variant: "debiased" or "tutorial".
      epsilon: constant of the tutorial's ratio, > 0, in the units of the gradient.

    Example:
      >>> result = snr(jnp.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]))
      >>> round(float(result.total.value), 3), int(result.num_dead)
      (3.667, 1)
    """
    check_choice("variant", variant, ("debiased", "tutorial"))
    check_positive("epsilon", epsilon)
    moments = _as_moments(samples)
    scaled, count = moments.scaled, moments.num_samples
    dead = jax.tree.map(lambda v: v == 0, scaled.variance)
    num_dead = jax.tree.reduce(jnp.add, _sums(dead))
    _, total = _in_one_scale(moments)
    if variant == "tutorial":
        population = (count - 1) / count
        entries = jax.tree.map(
            lambda m, v, s: jnp.abs(m * s) / (jnp.sqrt(v * population) * s + epsilon),
            scaled.mean, scaled.variance, moments.scale,
        )  # fmt: skip
        mean = jax.tree.reduce(jnp.add, _sums(entries)) / sum(leaf.size for leaf in jax.tree.leaves(entries))
        return SNR(Estimate(mean, jnp.full_like(mean, jnp.nan)), entries, num_dead)
    entries = jax.tree.map(lambda m, v: _ratio(jnp.square(m) - v / count, v), scaled.mean, scaled.variance)
    live_mean = jax.tree.map(lambda m, off: jnp.where(off, 0.0, m), scaled.mean, dead)
    parts = _signal_and_noise(moments, total, total(_square_norms(live_mean)), total(scaled.along_mean))
    return SNR(jackknife(*map(_ratio, *parts)), entries, num_dead)


def bias_variance(estimates: Moments | PyTree, reference: PyTree | None = None) -> BiasVariance:
    """Computes squared bias, variance and mean squared error of gradient estimates, with standard errors.

    `|m - r|^2 - tr Cov/T`, `tr Cov` and `mean |g_t - r|^2`. The jackknife standard errors are never too
    small; that of the bias is up to sqrt(2) times too large if noise hides the bias. In float32, a variance
    below 1e-57 times the squared norm of the reference is returned as 0.

    Args:
      estimates: `Moments` with a reference, or a pytree of estimates stacked along a leading axis of
        T >= 3. For one leaf or layer, pass one of `moments.parts(...)`.
      reference: the exact gradient, if estimates are stacked; `Moments` contain their own.

    Example:
      >>> parts = bias_variance(jnp.array([[1.0], [2.0], [3.0]]), jnp.array([2.0]))
      >>> float(parts.variance.value), round(float(parts.squared_bias.value), 3)
      (1.0, -0.333)
    """
    if isinstance(estimates, Moments) and reference is not None:
        expected = "None, as Moments contain the one given in the call that made them"
        raise ValueError(f"reference: expected {expected}, got one in addition to Moments")
    if (estimates.reference if isinstance(estimates, Moments) else reference) is None:
        raise ValueError("reference: expected the exact gradients, got None")
    moments = _as_moments(estimates, reference)
    scaled, (scale, total) = moments.scaled, _in_one_scale(moments)
    r = jax.tree.map(divided, moments.reference, moments.scale)
    offset = total(_square_norms(jax.tree.map(jnp.subtract, scaled.mean, r)))
    along = total(scaled.along_mean) - total(scaled.along_reference)
    bias, variance = _signal_and_noise(moments, total, offset, along)
    square_norm = total(_square_norms(r))
    found = jackknife(*bias), jackknife(*variance), jackknife(*map(jnp.add, bias, variance))
    absolute = jax.tree.map(lambda each: each * scale * scale, found)
    relative = jax.tree.map(lambda each: each / square_norm, found[:2])
    return BiasVariance(*absolute, *relative)
