"""Curves for a critic: drawn functions and new generators at fixed points, with extensions."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from lax_learning._checks import as_floating, check_choice, check_function, check_instance, check_sequence
from lax_learning.symbolic.generators import Generator
from lax_learning.symbolic.libraries import Library, draw_functions, function_values
from lax_learning.types import Key, Params

Apply = Callable[[Params, Array], Array]
EXTENSIONS = ("input", "gradient")


class Curves(NamedTuple):
    """Sources of curves for a critic.

    Fields:
      real: `key -> curves [latents, *curve_shape]` of functions drawn from the library.
      fake: `key -> curves [latents, *curve_shape]` of a newly drawn generator.
      latents: `(apply, params) -> curves` of any network with latents, extended in the same way;
        `apply(params, x)` returns `[points, latents]` and must treat points independently.
      curve_shape: `(numbers,)` or `(points, channels)`, as for a critic.
    """

    real: Callable[[Key], Array]
    fake: Callable[[Key], Array]
    latents: Callable[[Apply, Params], Array]
    curve_shape: tuple[int, ...]


def curves_at(
    x: ArrayLike,
    library: Library,
    generator: Generator,
    *,
    extensions: Sequence[Literal["input", "gradient"]] = (),
    method: Literal["stack", "embed"] = "embed",
) -> Curves:
    """Makes sources of curves: functions drawn from a library, and as many latents of a generator.

    `stack: [f(x), extension_1[0, :], extension_1[1, :], ..., extension_2[0, :], ...]`
    `embed: [p] -> [f(x_p), extension_1[p, :], extension_2[p, :], ...]`

    Args:
      x: the points, `[points, columns]`.
      library: the formulas from which functions are drawn.
      generator: drawn anew on every call.
      extensions: additional inputs of the critic, in this order: "input", the points, and "gradient", the
        derivatives w.r.t. them. The derivative of ReLU at 0 is 0.
      method: "stack" makes curves longer; "embed" adds channels to their points.

    Example:
      >>> from lax_learning import symbolic
      >>> x, library = jnp.linspace(-1, 1, 20)[:, None], symbolic.parse_library("N0 * X[:,0]**2")
      >>> curves = curves_at(x, library, symbolic.mlp_generator(1, 5), extensions=("input", "gradient"))
      >>> jax.jit(curves.real)(jax.random.key(0)).shape, jax.jit(curves.fake)(jax.random.key(1)).shape
      ((5, 20, 3), (5, 20, 3))
    """
    check_choice("method", method, ("stack", "embed"))
    check_instance("library", library, Library, "a Library, from parse_library")
    check_instance("generator", generator, Generator, "a Generator, such as mlp_generator(1, 5)")
    check_function("generator.init", generator.init, "a function of a key", None)
    check_sequence("extensions", extensions, f"a sequence of {sorted(EXTENSIONS)}")
    for i, extension in enumerate(extensions):
        check_choice(f"extensions[{i}]", extension, EXTENSIONS)
    if len(set(extensions)) != len(extensions):
        raise ValueError(f"extensions: expected each at most once, got {tuple(extensions)}")
    points = as_floating("x", x)
    if points.ndim != 2 or 0 in points.shape:
        raise ValueError(f"x: expected a non-empty [points, columns], got shape {list(points.shape)}")

    def extended(f: Callable[[Array], Array]) -> Array:
        """Returns the curves of `f: x -> [number, points]`."""
        values = f(points)
        columns = [slopes(f) if name == "gradient" else points for name in extensions]
        wide = [jnp.broadcast_to(of, (*values.shape, points.shape[1])).astype(values.dtype) for of in columns]
        if method == "embed" and wide:
            return jnp.concatenate([values[:, :, None], *wide], axis=2)
        return jnp.concatenate([values, *(of.reshape(len(values), -1) for of in wide)], axis=1)

    def slopes(f: Callable[[Array], Array]) -> Float[Array, "number points columns"]:
        """Returns `d f_i(x_p) / d x_pj` by forward mode, one pass per column."""

        def by_column(column: Float[Array, " columns"]) -> Array:
            return jax.jvp(f, (points,), (jnp.broadcast_to(column, points.shape),))[1]

        return jax.vmap(by_column, out_axes=-1)(jnp.eye(points.shape[1], dtype=points.dtype))

    def latents(apply: Apply, params: Params) -> Array:
        def f(x: Array) -> Array:
            check_function("apply", apply, "a function of (params, x)", params, x)
            latents = as_floating("apply(params, x)", apply(params, x))
            if latents.ndim != 2 or latents.shape[0] != x.shape[0]:
                got = f"shape {list(latents.shape)}"
                raise ValueError(f"apply: expected latents [{x.shape[0]}, latents], got {got}")
            return latents.T

        return extended(f)

    def fake(key: Key) -> Array:
        return latents(generator.apply, generator.init(key))

    def real(key: Key) -> Array:
        draws = draw_functions(key, library, number, dtype=points.dtype)
        return extended(lambda x: function_values(library, draws, x))

    number, *curve_shape = jax.eval_shape(fake, jax.random.key(0)).shape
    jax.eval_shape(real, jax.random.key(0))
    return Curves(real, fake, latents, tuple(curve_shape))
