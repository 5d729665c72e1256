"""Unit noise for perturbation: what is drawn has mean 0 and variance 1 on every entry of a pytree."""

import itertools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from lax_learning._checks import check_choice, check_floating
from lax_learning._precision import raised
from lax_learning.types import Key

Noise = Callable[[Key, PyTree], PyTree]
"""`(key, like) -> noise`: a pytree with the structure, shapes and dtypes of `like`."""


def _split_flat(draw: Callable[[int, Any], Array], like: PyTree) -> PyTree:
    """Cuts one draw `(size, dtype) -> [size]` into leaves: one program for all, not one a leaf."""
    leaves, structure = jax.tree.flatten(like)
    for leaf in leaves:
        check_floating("params", leaf)
    sizes = [leaf.size for leaf in leaves]
    flat = draw(sum(sizes), raised(*leaves))
    starts = itertools.accumulate(sizes, initial=0)
    drawn = [
        flat[start : start + size].reshape(leaf.shape).astype(leaf.dtype)
        for start, size, leaf in zip(starts, sizes, leaves, strict=False)
    ]
    return jax.tree.unflatten(structure, drawn)


def normal(key: Key, like: PyTree) -> PyTree:
    """Standard normal noise, `s ~ N(0, 1)`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> normal(jax.random.key(0), {"w": jnp.zeros((2, 3))})["w"].shape
      (2, 3)
    """
    return _split_flat(lambda size, dtype: jax.random.normal(key, (size,), dtype), like)


def rademacher(key: Key, like: PyTree) -> PyTree:
    """Rademacher noise, `s = +-1` with equal odds, 32 signs from one random word.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> jnp.abs(rademacher(jax.random.key(0), {"w": jnp.zeros(3)})["w"]).tolist()
      [1.0, 1.0, 1.0]
    """

    def signs(size: int, dtype: Any) -> Array:
        words = jax.random.bits(key, (-(-size // 32), 1), jnp.uint32)
        bits = (words >> jnp.arange(32, dtype=jnp.uint32)) & 1
        one = jnp.ones((), dtype)
        return jnp.where(bits == 1, one, -one).reshape(-1)[:size]

    return _split_flat(signs, like)


_NAMED: dict[str, Noise] = {"normal": normal, "rademacher": rademacher}


def as_noise(noise: str | Noise) -> Noise:
    """The noise of that name, or `noise` itself if it is a function, its shapes checked.

    Raises:
      ValueError: for an unknown name or, at trace time, noise of other shapes than asked for.
    """
    if not callable(noise):
        check_choice("noise", noise, _NAMED)
        return _NAMED[noise]

    def checked(key: Key, like: PyTree) -> PyTree:
        drawn = noise(key, like)
        chex.assert_trees_all_equal_shapes(
            drawn, like, exception_type=ValueError, custom_message="noise and what it is added to"
        )
        return drawn

    return checked
