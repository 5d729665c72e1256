"""Curves for a critic: drawn functions and fresh generators at fixed points, and what extends them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jaxtyping import Array, ArrayLike

from lax_learning._checks import (
    as_floating,
    check_choice,
    check_function,
    check_instance,
    check_sequence,
)
from lax_learning.symbolic.critic import embed, stack
from lax_learning.symbolic.expressions import Library, draw_functions, function_gradients, function_values
from lax_learning.symbolic.generators import Generator, latent_jacobian, latents_of
from lax_learning.types import Key, Params

METHODS = {"stack": stack, "embed": embed}
EXTENSIONS = ("input", "gradient")


class Curves(NamedTuple):
    """Source of a critic's curves.

    Fields:
      real: `key -> curves [latents, *curve_shape]` of functions drawn from the library.
      fake: `key -> curves [latents, *curve_shape]` of a fresh generator.
      latents: `(apply, params) -> curves` of any network with latents, extended in the same way.
      curve_shape: `(numbers,)` or `(points, channels)`, as a critic's.
    """

    real: Callable[[Key], Array]
    fake: Callable[[Key], Array]
    latents: Callable[[Callable[[Params, Array], Array], Params], Array]
    curve_shape: tuple[int, ...]


def curves_at(
    x: ArrayLike,
    library: Library,
    generator: Generator,
    *,
    extensions: Sequence[str] = (),
    method: str = "embed",
) -> Curves:
    """As many curves of functions as the generator has latents, and those of the generator.

    Args:
      x: the points, `[points, columns]`.
      library: that functions are drawn from.
      generator: a new one is drawn for every call.
      extensions: what a critic sees of a curve besides its values: "input", the points, and "gradient", the
        derivatives by them, in the given order.
      method: "stack" makes curves longer, "embed" gives their points more channels.

    Returns:
      The sources of curves.

    Raises:
      TypeError, ValueError: for points that do not fit the library or the generator, or unknown or repeated
        extensions.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from lax_learning.symbolic.expressions import parse_library
      >>> from lax_learning.symbolic.generators import mlp_generator
      >>> x, library = jnp.linspace(-1, 1, 20)[:, None], parse_library("N0 * X[:,0]**2")
      >>> curves = curves_at(x, library, mlp_generator(1, 5), extensions=("input", "gradient"))
      >>> curves.real(jax.random.key(0)).shape, curves.fake(jax.random.key(1)).shape
      ((5, 20, 3), (5, 20, 3))

    References:
      https://github.com/fabxy/symrep, 2022.
    """
    check_choice("method", method, METHODS)
    check_instance("library", library, Library, "a Library, from parse_library")
    check_instance("generator", generator, Generator, "a Generator, such as mlp_generator(1, 5)")
    check_function("generator.init", generator.init, "a function of a key", None)
    check_sequence("extensions", extensions, f"a sequence of {sorted(EXTENSIONS)}")
    extensions = tuple(extensions)
    for i, extension in enumerate(extensions):
        check_choice(f"extensions[{i}]", extension, EXTENSIONS)
    if len(set(extensions)) != len(extensions):
        raise ValueError(f"extensions: expected each at most once, got {extensions}")
    points = as_floating("x", x)
    if points.ndim != 2 or 0 in points.shape:
        raise ValueError(f"x: expected a non-empty [points, columns], got shape {list(points.shape)}")

    def extended(values: Array, gradients: Callable[[], Array]) -> Array:
        found = {"input": lambda: points, "gradient": gradients}
        return METHODS[method](values, *(found[name]() for name in extensions)) if extensions else values

    def latents(apply: Callable[[Params, Array], Array], params: Params) -> Array:
        return extended(latents_of(apply, params, points).T, lambda: latent_jacobian(apply, params, points))

    def fake(key: Key) -> Array:
        return latents(generator.apply, generator.init(key))

    def real(key: Key) -> Array:
        draws = draw_functions(key, library, number, dtype=points.dtype)
        values = function_values(library, draws, points)
        return extended(values, lambda: function_gradients(library, draws, points))

    number, *curve_shape = jax.eval_shape(fake, jax.random.key(0)).shape
    jax.eval_shape(real, jax.random.key(0))
    return Curves(real, fake, latents, tuple(curve_shape))
