"""Unit noise for perturbation: what is drawn has mean 0 and variance 1 on every entry of a pytree."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from lax_learning._checks import check_choice, check_floating
from lax_learning._precision import raised
from lax_learning.types import Key

Noise = Callable[[Key, PyTree], PyTree]
"""`(key, like) -> noise`: a pytree with the structure, shapes and dtypes of `like`."""


def _by_leaf(draw: Callable[[Key, Any], Array], key: Key, like: PyTree) -> PyTree:
    """`draw(key, leaf)` for every leaf, with a key of its own."""
    leaves, structure = jax.tree.flatten(like)
    for leaf in leaves:
        check_floating("params", leaf)
    keys = jax.random.split(key, max(len(leaves), 1))
    return jax.tree.unflatten(structure, [draw(k, leaf) for k, leaf in zip(keys, leaves, strict=False)])


def normal(key: Key, like: PyTree) -> PyTree:
    """Standard normal noise, `s ~ N(0, 1)`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> normal(jax.random.key(0), {"w": jnp.zeros((2, 3))})["w"].shape
      (2, 3)
    """

    def draw(key: Key, leaf: Any) -> Array:
        return jax.random.normal(key, leaf.shape, raised(leaf)).astype(leaf.dtype)

    return _by_leaf(draw, key, like)


def rademacher(key: Key, like: PyTree) -> PyTree:
    """Rademacher noise, `s = +-1` with equal odds, 32 signs from one random word.

    Rows of signs come from rows of words, by one shift for all of a row: a program that uses the signs reads
    words, and never writes signs to memory.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> jnp.abs(rademacher(jax.random.key(0), {"w": jnp.zeros(3)})["w"]).tolist()
      [1.0, 1.0, 1.0]
    """

    def draw(key: Key, leaf: Any) -> Array:
        width = leaf.shape[-1] if leaf.ndim and leaf.size >= 32 * leaf.shape[-1] > 0 else 1
        rows = leaf.size // width
        words = jax.random.bits(key, (-(-rows // 32) * width,), jnp.uint32).reshape(1, -1, width)
        bits = (words >> jnp.arange(32, dtype=jnp.uint32)[:, None, None]) & 1
        one = jnp.ones((), leaf.dtype)
        return jnp.where(bits == 1, one, -one).reshape(-1, width)[:rows].reshape(leaf.shape)

    return _by_leaf(draw, key, like)


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
        import chex  # takes a third of the library's own time to import

        chex.assert_trees_all_equal_shapes(
            drawn, like, exception_type=ValueError, custom_message="noise and what it is added to"
        )
        return drawn

    return checked
