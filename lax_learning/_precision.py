"""Precision of sums and differences: half precision is raised to float32."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lax_learning.types import Key


def raised(*values: Any) -> jnp.dtype:
    """Returns the common dtype of the values, float32 or wider, also under strict dtype promotion."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(jnp.result_type(*values), jnp.float32)


def is_half(dtype: Any) -> bool:
    """Returns whether a floating-point dtype is narrower than float32."""
    return jnp.finfo(dtype).bits < 32


def widened(tree: Any) -> Any:
    """Returns a pytree of arrays with half precision cast to float32."""

    def of(leaf: Array) -> Array:
        is_narrow = jnp.issubdtype(leaf.dtype, jnp.floating) and is_half(leaf.dtype)
        return leaf.astype(jnp.float32) if is_narrow else leaf

    return jax.tree.map(of, tree)


def shift(w: Array, step: Array, noise: Array) -> tuple[Array, Array, Array]:
    """Returns half-precision weights `w +- step noise` rounded so that no noise is lost, and noise to credit.

    Every step is rounded to a multiple of the spacing of numbers around `w`, and to at least one spacing. The
    rounded step `e = (w_plus - w_minus) / 2` then differs from `step noise`, so credit goes to the noise
    `noise (step noise / e)`, whose product with `e` is `step noise^2` whatever the rounding. Everything is
    computed in float32 on values that half precision represents exactly, so a compiler that keeps excess
    precision changes nothing.

    Returns:
      `w_plus` and `w_minus` in the dtype of `w`, and the noise to credit in float32.
    """
    dtype, noise = w.dtype, noise.astype(step.dtype)
    wide, exact = w.astype(step.dtype), step * noise
    # Rounding has no useful derivative, so differentiation through an update sees the step before rounding.
    at, by = jax.lax.stop_gradient((wide, exact))
    size = jnp.abs(at)
    move = jnp.maximum(_round(size + jnp.abs(by), dtype) - size, _spacing(size, dtype))
    move = jnp.where(by == 0, 0, jnp.copysign(move, by))
    plus, minus = _round(at + move, dtype), _round(at - move, dtype)
    added = (plus - minus) / 2
    credited = noise * jnp.where(added == 0, 0, by / jnp.where(added == 0, 1, added))
    plus, minus = wide + exact + (plus - (at + by)), wide - exact + (minus - (at - by))
    return plus.astype(dtype), minus.astype(dtype), credited


def _spacing(size: Array, dtype: Any) -> Array:
    """Returns the distance from `size >= 0` to the next larger number of a half-precision dtype."""
    info = jnp.finfo(dtype)
    bits = jax.lax.bitcast_convert_type(size.astype(jnp.float32), jnp.uint32) & 0x7F800000
    power = jax.lax.bitcast_convert_type(bits, jnp.float32)
    least = max(float(info.smallest_subnormal), float(jnp.finfo(jnp.float32).tiny))
    return jnp.maximum(power * float(info.eps), least).astype(size.dtype)


def _round(value: Array, dtype: Any) -> Array:
    """Rounds to the nearest number of a half-precision dtype, without changing the dtype of the array."""
    spacing = _spacing(jnp.abs(value), dtype)
    return jnp.round(value / spacing) * spacing


def rounded_at_random(key: Key, value: Array, dtype: Any) -> Array:
    """Casts to a dtype; half precision is rounded up or down at random, so that the mean is the value."""
    if not is_half(dtype):
        return value.astype(dtype)
    spacing = _spacing(jnp.abs(value), dtype)
    below = jnp.floor(value / spacing)
    goes_up = jax.random.uniform(key, value.shape, value.dtype) < value / spacing - below
    return ((below + goes_up) * spacing).astype(dtype)


def promoted(*values: Any) -> tuple[Array, ...]:
    """Returns the values in their common dtype, also under strict dtype promotion."""
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*values)
    return tuple(jnp.asarray(value, dtype) for value in values)
