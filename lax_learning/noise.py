"""Unit noise for perturbations: mean 0 and variance 1 for every entry of a pytree."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from lax_learning import _checks as checks
from lax_learning._arrays import by_path
from lax_learning._precision import raised
from lax_learning.types import Key

Noise = Callable[[Key, PyTree], PyTree]
"""`(key, like) -> noise`: a pytree with the structure and shapes of `like`, cast to its dtypes."""
NoiseLike = Literal["normal", "rademacher"] | Noise
"""Noise by its name, or a function."""


def _by_leaf(draw: Callable[[Key, Any], Array], key: Key, like: PyTree) -> PyTree:
    """Returns `draw(key, leaf)` for every leaf, with a different key each."""
    checks.check_key("key", key)

    def floating(at: str, leaf: Any) -> Any:
        checks.check_floating(at, leaf)
        return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.asarray(leaf)

    leaves, structure = jax.tree.flatten(by_path("like", floating, like))
    keys = jax.random.split(key, max(len(leaves), 1))
    return structure.unflatten([draw(k, leaf) for k, leaf in zip(keys, leaves, strict=False)])


def normal(key: Key, like: PyTree) -> PyTree:
    """Draws standard normal noise, `s ~ N(0, 1)`.

    Example:
      >>> normal(jax.random.key(0), {"w": jnp.zeros((2, 3))})["w"].shape
      (2, 3)
    """
    return _by_leaf(_normal, key, like)


def _normal(key: Key, leaf: Any) -> Array:
    dtype = raised(leaf)
    if leaf.size < 1024 or jax.default_backend() != "cpu":
        return jax.random.normal(key, leaf.shape, dtype).astype(leaf.dtype)
    # The same numbers in a loop over two rows, which keeps the compiler from drawing them again for a second
    # use, and from drawing them in the shape of the leaf, where short last axes are slow.
    rows = jax.lax.map(_normal_of, _uniform(key, (2, -(-leaf.size // 2)), dtype))
    return rows.reshape(-1)[: leaf.size].reshape(leaf.shape).astype(leaf.dtype)


def _normal_in_place(key: Key, leaf: Any) -> Array:
    """Draws the numbers of `_normal` without the buffers of a loop, for programs that use them once."""
    return _normal_of(_uniform(key, (leaf.size,), raised(leaf))).reshape(leaf.shape).astype(leaf.dtype)


def _normal_of(uniform: Array) -> Array:
    """Transforms uniform numbers in (-1, 1) into normal ones, as `jax.random.normal` does."""
    return np.sqrt(2).astype(uniform.dtype) * jax.lax.erf_inv(uniform)


def _uniform(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
    """Draws uniform numbers in (-1, 1), as `jax.random.normal` does."""
    low = np.nextafter(np.asarray(-1, dtype), np.asarray(0, dtype))
    if dtype != jnp.float32:
        return jax.random.uniform(key, shape, dtype, minval=low, maxval=1)
    between_1_and_2 = words(key, shape) >> np.uint32(9) | np.float32(1).view(np.uint32)
    unit = jax.lax.bitcast_convert_type(between_1_and_2, dtype) - np.float32(1)
    return jnp.maximum(low, unit * (1 - low) + low)


_ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)


def words(key: Key, shape: tuple[int, ...]) -> Array:
    """Returns `jax.random.bits(key, shape, jnp.uint32)`, four times as fast on CPUs.

    There, JAX passes over memory for every fourth round of Threefry-2x32; here, one pass computes them all.
    """
    size = math.prod(shape)
    by_index = getattr(jax.config, "jax_threefry_partitionable", True)
    is_threefry = by_index and str(jax.random.key_impl(key)) == "threefry2x32"
    if not is_threefry or size >= 2**32 or jax.default_backend() != "cpu":
        return jax.random.bits(key, shape, jnp.uint32)
    first, second = jax.random.key_data(key)
    keys = first, second, first ^ second ^ np.uint32(0x1BD11BDA)
    count = jax.lax.iota(jnp.uint32, size).reshape(shape)
    x, y = keys[0], count + keys[1]
    for i in range(5):
        for rotation in _ROTATIONS[i % 2]:
            x = x + y
            y = x ^ (y << np.uint32(rotation) | y >> np.uint32(32 - rotation))
        x, y = x + keys[(i + 1) % 3], y + (keys[(i + 2) % 3] + np.uint32(i + 1))
    return x ^ y


def rademacher(key: Key, like: PyTree) -> PyTree:
    """Draws Rademacher noise, `s = +-1` with equal probability, 32 signs from one random word.

    Example:
      >>> jnp.abs(rademacher(jax.random.key(0), {"w": jnp.zeros(3)})["w"]).tolist()
      [1.0, 1.0, 1.0]
    """

    def draw(key: Key, leaf: Any) -> Array:
        # Rows of signs come from rows of words, with one shift for a row: signs are never written to memory.
        width = leaf.shape[-1] if leaf.ndim and leaf.size >= 32 * leaf.shape[-1] > 0 else 1
        rows = leaf.size // width
        drawn = jax.random.bits(key, (-(-rows // 32) * width,), jnp.uint32).reshape(1, -1, width)
        bits = (drawn >> jnp.arange(32, dtype=jnp.uint32)[:, None, None]) & 1
        one = jnp.ones((), leaf.dtype)
        return jnp.where(bits == 1, one, -one).reshape(-1, width)[:rows].reshape(leaf.shape)

    return _by_leaf(draw, key, like)


_NAMED: dict[str, Noise] = {"normal": normal, "rademacher": rademacher}


def as_noise(noise: NoiseLike, *, in_place: bool = False) -> Noise:
    """Returns the named noise function, or `noise` itself with checks if it is a function.

    Noise of another dtype, such as int32 from `jax.random.rademacher`, is cast to that of its leaf, so that
    the same numbers are added and credited. `in_place` is for programs that use each draw once.
    """
    if not callable(noise):
        checks.check_choice("noise", noise, _NAMED)
        return partial(_by_leaf, _normal_in_place) if in_place and noise == "normal" else _NAMED[noise]
    expected = "'normal', 'rademacher' or a function (key, like) -> unit noise"
    checks.check_callable("noise", noise, expected, num_arguments=2)

    def checked(key: Key, like: PyTree) -> PyTree:
        drawn = noise(key, like)
        structure, expected = jax.tree.structure(drawn), jax.tree.structure(like)
        if structure != expected:
            raise ValueError(
                f"noise: expected the structure of the values it is added to, {expected}, got {structure}"
            )
        return by_path("noise", _cast, drawn, like)

    return checked


def _cast(at: str, drawn: Any, leaf: Any) -> Array:
    drawn = checks.as_array(at, drawn)
    if drawn.dtype == bool:
        raise TypeError(f"{at}: expected an array of real numbers, got {checks.describe(drawn)}")
    checks.check_shapes([at], [drawn], [leaf.shape])
    return drawn.astype(leaf.dtype)
