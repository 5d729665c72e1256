"""Critics, and sources of the curves that they tell apart."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from lax_learning import _checks as checks
from lax_learning.symbolic.formulas import as_points
from lax_learning.symbolic.generators import Generator, as_entries, relu_network
from lax_learning.symbolic.libraries import Library, draw_functions, function_values
from lax_learning.types import Key, Params

Apply = Callable[[Params, Array], Array]


class Critic(NamedTuple):
    """A classifier of curves, all sampled at the same ordered points.

    Fields:
      init: `key -> params`.
      apply: `(params, curves [number, *curve_shape]) -> logits [number]`; > 0 means real.
      curve_shape: `(points,)` or `(points, channels)`.
    """

    init: Callable[[Key], Params]
    apply: Callable[[Params, ArrayLike], Array]
    curve_shape: tuple[int, ...]


def critic(
    num_points: int,
    *,
    hidden: Sequence[int] = (64, 64),
    channels: int = 1,
    embedding: Sequence[int] = (64, 64),
    dtype: DTypeLike = jnp.float32,
) -> Critic:
    """A critic that applies a ReLU multilayer perceptron to the points of a curve.

    `logit = mlp(curve)`, or `logit = mlp(embedding(curve[0]), ..., embedding(curve[points - 1]))`

    Weights and biases are initialised from `U(-r, r)` with `r = 1 / sqrt(fan_in)`, as in PyTorch.

    Args:
      num_points: numbers per curve; points times (1 + columns) for curves extended by "stack".
      hidden: widths of the hidden layers; empty for a linear critic.
      channels: numbers per point; 1 + columns for curves extended by "embed". If there is more than one, a
        multilayer perceptron, shared by all points, maps them to one number.
      embedding: hidden widths of that perceptron.
      dtype: dtype of the params, `{"critic": ..., "embedding": ...}`, each as of an `mlp`; with one channel
        the embedding is empty.

    Example:
      >>> judge = critic(30, hidden=(16, 16), channels=2, embedding=(8,))
      >>> judge.apply(judge.init(jax.random.key(0)), jnp.ones((5, 30, 2))).shape
      (5,)
    """
    checks.check_count("num_points", num_points)
    checks.check_count("channels", channels)
    judge = relu_network((num_points, *checks.as_sizes("hidden", hidden), 1), dtype)
    shared = relu_network((channels, *checks.as_sizes("embedding", embedding), 1), dtype)
    curve_shape = (num_points,) if channels == 1 else (num_points, channels)

    def init(key: Key) -> Params:
        checks.check_key("key", key)
        critic_key, embedding_key = jax.random.split(key)
        embedding = () if channels == 1 else shared.init(embedding_key)
        return {"critic": judge.init(critic_key), "embedding": embedding}

    def apply(params: Params, curves: ArrayLike) -> Float[Array, " number"]:
        curves = as_rows("curves", curves, curve_shape)
        params = as_entries(params, ("critic", "embedding"))
        if channels > 1:
            numbers = shared.apply(params["embedding"], curves.reshape(-1, channels))
            curves = numbers.reshape(-1, num_points)
        return judge.apply(params["critic"], curves)[:, 0]

    return Critic(init, apply, curve_shape)


def as_rows(name: str, rows: ArrayLike, shape: tuple[int, ...]) -> Array:
    """Returns curves or logits as an array; raises unless they are floats `[number, *shape]`, number > 0."""
    rows = checks.as_floating(name, rows)
    if rows.ndim != 1 + len(shape) or rows.shape[1:] != shape or len(rows) == 0:
        expected = ", ".join(["number > 0", *map(str, shape)])
        raise ValueError(f"{name}: expected shape [{expected}], got {list(rows.shape)}")
    return rows


class Curves(NamedTuple):
    """Sources of curves for a critic.

    Fields:
      real, fake: `key -> curves [latents, *curve_shape]` of drawn functions, and of a newly drawn generator.
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
      library, generator: what is drawn from, anew on every call.
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
    checks.check_choice("method", method, ("stack", "embed"))
    checks.check_instance("library", library, Library, "a Library, from parse_library")
    checks.check_instance("generator", generator, Generator, "a Generator, such as mlp_generator(1, 5)")
    checks.check_function("generator.init", generator.init, "a function of a key", None)
    checks.check_sequence("extensions", extensions, "a sequence of 'input' and 'gradient'")
    for i, extension in enumerate(extensions):
        checks.check_choice(f"extensions[{i}]", extension, ("input", "gradient"))
    if len(set(extensions)) != len(extensions):
        raise ValueError(f"extensions: expected each at most once, got {tuple(extensions)}")
    points = as_points(x, 1)

    def extended(f: Callable[[Array], Array]) -> Array:
        """Returns the curves of `f: x -> [number, points]`."""

        def slope(column: Float[Array, " columns"]) -> Float[Array, "number points"]:
            return jax.jvp(f, (points,), (jnp.broadcast_to(column, points.shape),))[1]

        def added(extension: str) -> Float[Array, "number points columns"]:
            if extension == "gradient":  # one pass per column
                return jax.vmap(slope, out_axes=-1)(jnp.eye(points.shape[1], dtype=points.dtype))
            return jnp.broadcast_to(points, (*values.shape, points.shape[1]))

        values = f(points)
        wide = [added(extension).astype(values.dtype) for extension in extensions]
        if method == "embed" and wide:
            return jnp.concatenate([values[:, :, None], *wide], axis=2)
        return jnp.concatenate([values, *(of.reshape(len(values), -1) for of in wide)], axis=1)

    def latents(apply: Apply, params: Params) -> Array:
        def f(x: Array) -> Array:
            checks.check_function("apply", apply, "a function of (params, x)", params, x)
            found = checks.as_floating("apply(params, x)", apply(params, x))
            if found.ndim != 2 or len(found) != len(x):
                raise ValueError(f"apply: expected shape [{len(x)}, latents], got {list(found.shape)}")
            return found.T

        return extended(f)

    def fake(key: Key) -> Array:
        return latents(generator.apply, generator.init(key))

    def real(key: Key) -> Array:
        draws = draw_functions(key, library, number, dtype=points.dtype)
        return extended(lambda x: function_values(library, draws, x))

    number, *curve_shape = jax.eval_shape(fake, jax.random.key(0)).shape
    jax.eval_shape(real, jax.random.key(0))
    return Curves(real, fake, latents, tuple(curve_shape))
