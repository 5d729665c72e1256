"""Generators of curves that are no symbolic functions: untrained networks and Gaussian processes."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from lax_learning._checks import (
    as_floating,
    as_params,
    check_count,
    check_floating_dtype,
    check_function,
    check_inputs,
    check_key,
    check_memory,
    check_positive,
    check_scalar,
    check_shapes,
)
from lax_learning._precision import promoted
from lax_learning.symbolic._dsn import Generator, check_entries, dsn_generator
from lax_learning.symbolic._relu_network import relu_network, torch_uniform
from lax_learning.types import Key, Params

__all__ = ["Generator", "dsn_generator", "gaussian_process_generator", "latent_jacobian", "mlp_generator"]


def mlp_generator(
    num_inputs: int,
    num_latents: int,
    *,
    hidden: Sequence[int] = (32, 32),
    dtype: DTypeLike = jnp.float32,
) -> Generator:
    """An untrained ReLU network whose latents share the hidden layers.

    `a_0 = x`, `a_l = relu(a_{l-1} w_l + b_l)`, the last layer linear; `w_l, b_l ~ U(-r, r)` with
    `r = 1 / sqrt(fan_in)`, as torch's linear layers start.

    Args:
      num_inputs: columns of `x [points, num_inputs]`.
      num_latents: columns of the output `[points, num_latents]`.
      hidden: widths of the hidden layers; none gives a linear function.
      dtype: of the parameters.

    Returns:
      The generator; its params are those of an `mlp`.

    Raises:
      TypeError, ValueError: for sizes that are no positive ints; when applied, for x that is no
        floating `[points, num_inputs]` or has no points.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> generator = mlp_generator(1, 5)
      >>> generator.apply(generator.init(jax.random.key(0)), jnp.ones((20, 1))).shape
      (20, 5)

    References:
      symrep, https://github.com/fabxy/symrep, 2022.
    """
    check_count("num_latents", num_latents)
    network = relu_network(num_inputs, hidden, num_latents, torch_uniform, torch_uniform, dtype)

    def apply(params: Params, x: ArrayLike) -> Float[Array, "points latents"]:
        x = as_floating("x", x)
        check_inputs(x, (num_inputs,))
        return network.apply(params, x)

    return Generator(network.init, apply)


def gaussian_process_generator(
    num_inputs: int,
    num_latents: int,
    *,
    length_scale: ArrayLike = 1.0,
    scale: ArrayLike = 1.0,
    num_features: int = 512,
    dtype: DTypeLike = jnp.float32,
) -> Generator:
    """Smooth random functions: a Gaussian process with a squared-exponential kernel.

    `f(x) = scale sqrt(2/M) sum_m a_m cos(w_m . x / length_scale + b_m)`, `a ~ N(0, 1)`, `w ~ N(0, I)`,
    `b ~ U(0, 2 pi)`: mean 0 and covariance `scale^2 exp(-|x - x'|^2 / (2 length_scale^2))`

    A draw is a function, to be evaluated anywhere and differentiated. The latents of one draw have their
    own `a` and share `w` and `b`: they are uncorrelated, and independent up to a share of `1/M`, which is
    also how far f is from Gaussian.

    Args:
      num_inputs: columns of `x [points, num_inputs]`.
      num_latents: columns of the output `[points, num_latents]`.
      length_scale: distance over which f changes, in units of x; may be traced.
      scale: standard deviation of `f(x)`; may be traced.
      num_features: M, the number of cosines.
      dtype: of the parameters.

    Returns:
      The generator; its params are `a [M, num_latents]`, `w [num_inputs, M]` and `b [M]`.

    Raises:
      TypeError, ValueError: for sizes that are no positive ints, or a length_scale or scale that is not
        positive; when applied, for x that is no floating `[points, num_inputs]` or has no points.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> generator = gaussian_process_generator(1, 5, length_scale=0.3)
      >>> generator.apply(generator.init(jax.random.key(0)), jnp.ones((20, 1))).shape
      (20, 5)

    References:
      Rahimi and Recht, Random features for large-scale kernel machines, NeurIPS 2007,
      https://papers.nips.cc/paper/2007/hash/013a006f03dbc5392effeb8f18fda755-Abstract.html.
    """
    sizes = {"num_inputs": num_inputs, "num_latents": num_latents, "num_features": num_features}
    for name, size in sizes.items():
        check_count(name, size)
    check_floating_dtype("dtype", dtype)
    check_memory(
        "num_inputs, num_latents and num_features",
        [(num_features, num_latents), (num_inputs, num_features)],
        dtype,
    )
    for name, value in (("length_scale", length_scale), ("scale", scale)):
        check_positive(name, value)
        check_scalar(name, value)

    def init(key: Key) -> dict[str, Array]:
        check_key("key", key)
        a_key, w_key, b_key = jax.random.split(key, 3)
        return {
            "a": jax.random.normal(a_key, (num_features, num_latents), dtype),
            "w": jax.random.normal(w_key, (num_inputs, num_features), dtype),
            "b": jax.random.uniform(b_key, (num_features,), dtype, 0, 2 * math.pi),
        }

    def apply(params: Params, x: ArrayLike) -> Float[Array, "points latents"]:
        x = as_floating("x", x)
        check_inputs(x, (num_inputs,))
        check_entries(params, ("a", "w", "b"))
        params = as_params(params)
        scales = jnp.asarray(length_scale, dtype), jnp.asarray(scale, dtype)
        x, a, w, b, length, height = promoted(x, params["a"], params["w"], params["b"], *scales)
        shapes = [(num_features, num_latents), (num_inputs, num_features), (num_features,)]
        check_shapes(("params['a']", "params['w']", "params['b']"), (a, w, b), shapes)
        features = jnp.cos(x / length @ w + b)
        return height * math.sqrt(2 / num_features) * (features @ a)

    return Generator(init, apply)


def latent_jacobian(
    apply: Callable[[Params, Array], Array], params: Params, x: ArrayLike
) -> Float[Array, "latents points columns"]:
    """The derivative of every latent by the input, point by point.

    `J[i, p, j] = d latent_i(x_p) / d x_pj`, in forward mode: one pass a column. A latent at one point
    must not depend on the other points. ReLU has derivative 0 at 0.

    Args:
      apply: `(params, x) -> latents [points, latents]`, as a generator's.
      params: the parameters.
      x: `[points, columns]`.

    Returns:
      The derivatives `[latents, points, columns]`.

    Raises:
      TypeError, ValueError: for x that is no floating, non-empty `[points, columns]`, or latents that are
        not `[points, latents]`.

    Example:
      >>> import jax.numpy as jnp
      >>> latent_jacobian(lambda params, x: params * x**2, 2.0, jnp.array([[1.0], [3.0]])).tolist()
      [[[4.0], [12.0]]]
    """
    check_function("apply", apply, "a function of (params, x)", params, x)
    x = as_floating("x", x)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"x: expected a non-empty [points, columns], got shape {list(x.shape)}")

    def derivative(column: Float[Array, " columns"]) -> Array:
        return jax.jvp(lambda x: latents_of(apply, params, x), (x,), (jnp.broadcast_to(column, x.shape),))[1]

    by_column = jax.vmap(derivative)(jnp.eye(x.shape[1], dtype=x.dtype))
    return by_column.transpose(2, 1, 0)


def latents_of(apply: Callable[[Params, Array], Array], params: Params, x: Array) -> Array:
    """`apply(params, x)`; raises unless it gives floating latents `[points, latents]`."""
    check_function("apply", apply, "a function of (params, x)", params, x)
    latents = as_floating("apply(params, x)", apply(params, x))
    if latents.ndim != 2 or latents.shape[0] != x.shape[0]:
        raise ValueError(f"apply: expected latents [{x.shape[0]}, latents], got shape {list(latents.shape)}")
    return latents
