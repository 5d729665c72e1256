"""Precision of sums and differences: half precision is raised to float32."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lax_learning.types import Key


def raised(*values: Any) -> jnp.dtype:
    """The dtype of the values taken together, float32 or wider, also under strict dtype promotion."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(jnp.result_type(*values), jnp.float32)


def is_half(dtype: Any) -> bool:
    """Returns whether a floating-point dtype is narrower than float32."""
    return jnp.finfo(dtype).bits < 32


def widened(tree: Any) -> Any:
    """A pytree of arrays, those of half precision in float32."""

    def of(leaf: Array) -> Array:
        is_narrow = jnp.issubdtype(leaf.dtype, jnp.floating) and is_half(leaf.dtype)
        return leaf.astype(jnp.float32) if is_narrow else leaf

    return jax.tree.map(of, tree)


def shift(w: Array, step: Array, noise: Array) -> tuple[Array, Array, Array]:
    """The weights `w +- step noise` of half precision as they can be stored, and the noise as it was added.

    The step is made a multiple of the spacing of the numbers around `w`, and one spacing at least, so that
    no noise is rounded away. `(w_plus - w_minus) / 2 = e` then differs from `step noise`, and the noise that
    gets the credit is `noise (step noise / e)`: its product with `e` has the mean of `step noise^2`, whatever
    the rounding. All of it is computed in float32, on values that half precision holds exactly: a compiler
    that keeps more precision than asked for changes nothing.

    Returns:
      `w_plus` and `w_minus` in the dtype of `w`, and the noise that gets the credit in float32.
    """
    dtype, noise = w.dtype, noise.astype(step.dtype)
    wide, exact = w.astype(step.dtype), step * noise
    # Rounding has no useful derivative: differentiation through an update sees the step without it.
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
    """The distance from `size >= 0` to the next larger number of a half-precision dtype."""
    info = jnp.finfo(dtype)
    bits = jax.lax.bitcast_convert_type(size.astype(jnp.float32), jnp.uint32) & 0x7F800000
    power = jax.lax.bitcast_convert_type(bits, jnp.float32)
    least = max(float(info.smallest_subnormal), float(jnp.finfo(jnp.float32).tiny))
    return jnp.maximum(power * float(info.eps), least).astype(size.dtype)


def _round(value: Array, dtype: Any) -> Array:
    """`value` as the nearest number of a half-precision dtype, in its own dtype."""
    spacing = _spacing(jnp.abs(value), dtype)
    return jnp.round(value / spacing) * spacing


def rounded_at_random(key: Key, value: Array, dtype: Any) -> Array:
    """The value in a dtype; half precision goes up or down at random, so that its mean is the value."""
    if not is_half(dtype):
        return value.astype(dtype)
    spacing = _spacing(jnp.abs(value), dtype)
    below = jnp.floor(value / spacing)
    goes_up = jax.random.uniform(key, value.shape, value.dtype) < value / spacing - below
    return ((below + goes_up) * spacing).astype(dtype)


def promoted(*values: Any) -> tuple[Array, ...]:
    """The values in the dtype that they have together, also under strict dtype promotion."""
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*values)
    return tuple(jnp.asarray(value, dtype) for value in values)
