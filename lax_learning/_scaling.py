"""Exact scaling by powers of two, so that squares neither overflow nor underflow."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

HEADROOM = 2.0**32
"""Largest magnitude of scaled numbers, up to a factor of 4."""


def scale_for(largest: Float[Array, ""]) -> Float[Array, ""]:
    """Returns the power of four by which to divide numbers, so that the largest is about `HEADROOM`.

    Sums of `2^56` squares of scaled numbers stay finite, and squares of numbers `2^-95` times as large are
    not 0. The scale and its inverse are normal numbers for any magnitude, including 0 and infinity.
    """
    tiny = float(jnp.finfo(largest.dtype).tiny)
    root = jnp.sqrt(jnp.clip(largest / HEADROOM, tiny, 1 / tiny))
    mantissa, _ = jnp.frexp(root)
    return jnp.square(root / mantissa / 2)


def largest_magnitude(*arrays: Float[Array, "..."]) -> Float[Array, ""]:
    """Returns the largest finite magnitude in arrays of one dtype, or 0, without a gradient."""
    arrays = jax.lax.stop_gradient(arrays)
    largest = [jnp.max(jnp.where(jnp.isfinite(a), jnp.abs(a), 0), initial=0) for a in arrays]
    return jnp.max(jnp.stack(largest))


def scale_of(*arrays: Float[Array, "..."]) -> Float[Array, ""]:
    """Returns a common scale for arrays of one dtype, without a gradient."""
    return scale_for(largest_magnitude(*arrays))


def divided(array: Float[Array, "..."], scale: Float[Array, ""]) -> Float[Array, "..."]:
    """Returns `array / scale`, also for subnormal numbers, which XLA treats as 0 on CPUs."""
    info = jnp.finfo(array.dtype)
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(array), f"int{info.bits}")
    digits = (bits & ((1 << info.nmant) - 1)).astype(array.dtype)
    is_small = (bits & ((1 << (info.bits - 1)) - 1)) < (1 << info.nmant)
    magnitude = digits * float(info.eps) * (float(info.tiny) / scale)
    small = jnp.where(bits < 0, -magnitude, magnitude)
    quotient = array / scale
    return quotient + jnp.where(is_small, small - jax.lax.stop_gradient(quotient), 0)


def norm(array: Float[Array, "..."], axis: int | None = None) -> Float[Array, "..."]:
    """Returns `sqrt(sum_i a_i^2)` of numbers whose squares stay in range, with derivative 0 at 0."""
    square = jnp.sum(jnp.square(array), axis=axis)
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


def root_mean_square(array: Float[Array, "..."], axes: tuple[int, ...]) -> Float[Array, "..."]:
    """Returns `sqrt(mean a^2)` over some axes, also for numbers whose squares overflow or underflow."""
    scale = scale_of(array)
    return jnp.sqrt(jnp.mean(jnp.square(divided(array, scale)), axis=axes)) * scale
