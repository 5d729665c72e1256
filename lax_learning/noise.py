"""Unit noise for perturbation: what is drawn has mean 0 and variance 1 on every entry of a pytree."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from lax_learning._checks import check_choice, check_floating
from lax_learning.types import Key

Noise = Callable[[Key, PyTree], PyTree]
"""`(key, like) -> noise`: a pytree with the structure, shapes and dtypes of `like`."""


def _draw(key: Key, like: PyTree, draw: Callable[[Key, Any], Array]) -> PyTree:
    leaves, structure = jax.tree.flatten(like)
    for leaf in leaves:
        check_floating("params", leaf)
    keys = jax.random.split(key, max(len(leaves), 1))
    drawn = [draw(k, leaf) for k, leaf in zip(keys, leaves, strict=False)]
    return jax.tree.unflatten(structure, drawn)


def normal(key: Key, like: PyTree) -> PyTree:
    """Standard normal noise, `s ~ N(0, 1)`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> normal(jax.random.key(0), {"w": jnp.zeros((2, 3))})["w"].shape
      (2, 3)
    """
    return _draw(key, like, lambda k, leaf: jax.random.normal(k, jnp.shape(leaf), leaf.dtype))


def _signs(key: Key, leaf: Array) -> Array:
    words = jax.random.bits(key, (-(-leaf.size // 32), 1), jnp.uint32)
    bits = (words >> jnp.arange(32, dtype=jnp.uint32)) & 1
    one = jnp.ones((), leaf.dtype)
    return jnp.where(bits == 1, one, -one).reshape(-1)[: leaf.size].reshape(leaf.shape)


def rademacher(key: Key, like: PyTree) -> PyTree:
    """Rademacher noise, `s = +-1` with equal odds, 32 signs from one random word.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> jnp.abs(rademacher(jax.random.key(0), {"w": jnp.zeros(3)})["w"]).tolist()
      [1.0, 1.0, 1.0]
    """
    return _draw(key, like, _signs)


_NAMED: dict[str, Noise] = {"normal": normal, "rademacher": rademacher}


def as_noise(noise: str | Noise) -> Noise:
    """The noise of that name, or `noise` itself if it is a function.

    Raises:
      ValueError: for an unknown name.
    """
    if callable(noise):
        return noise
    check_choice("noise", noise, _NAMED)
    return _NAMED[noise]
