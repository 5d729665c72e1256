"""Generators of curves that are no symbolic functions: untrained networks and Gaussian processes."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import variance_scaling, zeros
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from lax_learning import _checks as checks
from lax_learning._arrays import check_inputs
from lax_learning._precision import promoted
from lax_learning.symbolic.critics import as_entries, relu_network, torch_uniform
from lax_learning.types import Key, Params


class Generator(NamedTuple):
    """A distribution of functions; many draws at once come from `jax.vmap` over the keys.

    Fields:
      init: `key -> params`, a fresh draw.
      apply: `(params, x [points, columns]) -> latents [points, latents]`, each point on its own.
    """

    init: Callable[[Key], Params]
    apply: Callable[[Params, ArrayLike], Array]


def mlp_generator(
    num_inputs: int, num_latents: int, *, hidden: Sequence[int] = (32, 32), dtype: DTypeLike = jnp.float32
) -> Generator:
    """An untrained ReLU network whose latents share the hidden layers.

    `a_0 = x`, `a_l = relu(a_{l-1} w_l + b_l)`, the last layer linear; `w_l, b_l ~ U(-r, r)` with
    `r = 1 / sqrt(fan_in)`, as torch's linear layers start.

    Args:
      num_inputs: columns of `x [points, num_inputs]`.
      num_latents: columns of the output `[points, num_latents]`.
      hidden: widths of the hidden layers; none gives a linear function.
      dtype: of the parameters, which are those of an `mlp`.

    Example:
      >>> generator = mlp_generator(1, 5)
      >>> generator.apply(generator.init(jax.random.key(0)), jnp.ones((20, 1))).shape
      (20, 5)
    """
    checks.check_count("num_latents", num_latents)
    network = relu_network(num_inputs, hidden, num_latents, dtype)
    return Generator(network.init, lambda params, x: network.apply(params, _points(x, num_inputs)))


def dsn_generator(
    num_inputs: int,
    num_latents: int,
    *,
    hidden: Sequence[int] = (32, 32),
    alpha: ArrayLike | None = None,
    norm: Literal["none", "softmax"] = "none",
    prune: ArrayLike = 0.0,
    bias: bool | Literal["zeros"] = False,
    dtype: DTypeLike = jnp.float32,
) -> Generator:
    """A disentangled sparsity network: one ReLU network for each latent, on an input masked for it.

    `latent_i = f_i(x * m_i)`, `m = prune(norm(alpha))`, `w ~ N(0, 6 / (fan_in + fan_out))`

    The standard deviation is the published one, sqrt(3) times that of Xavier's weights. An untrained network
    whose biases are 0 is linear on each side of 0 along every line through it. The params are a dict of
    `networks`, those of an `mlp` with the latents as a first axis, and of `alpha` unless it was given.

    Args:
      num_inputs, num_latents, dtype: as of `mlp_generator`.
      hidden: widths of the hidden layers of each latent's network.
      alpha: the mask `[num_latents, num_inputs]`, kept fixed; None for one drawn from N(0, 1) that is
        part of the params and so is trained with them.
      norm: "softmax" for `softmax(|alpha|)` over the inputs; "none" for alpha as it is.
      prune: not negative; entries of the normalised mask below it become 0, also negative ones; at 0 none.
      bias: False for no biases, True for `U(-r, r)` with `r = 1 / sqrt(fan_in)`, "zeros" for the
        published ones, which start at 0 and are trained.

    Example:
      >>> generator = dsn_generator(2, 3, norm="softmax", prune=0.1)
      >>> params = generator.init(jax.random.key(0))
      >>> params["networks"][0]["w"].shape, params["alpha"].shape
      ((3, 2, 32), (3, 2))
    """
    checks.check_count("num_latents", num_latents)
    checks.check_choice("norm", norm, ("none", "softmax"))
    checks.check_not_negative("prune", prune)
    if not (isinstance(bias, bool) or (isinstance(bias, str) and bias == "zeros")):
        raise ValueError(f"bias: expected one of [False, True, 'zeros'], got {bias!r}")
    normal = variance_scaling(3.0, "fan_avg", "normal")
    inits = (lambda fan_in: normal), {False: None, True: torch_uniform, "zeros": lambda fan_in: zeros}[bias]
    network = relu_network(num_inputs, hidden, 1, dtype, *inits, copies=int(num_latents))
    shape = (num_latents, num_inputs)
    least = jnp.asarray(prune, dtype)
    fixed = None if alpha is None else checks.as_array("alpha", alpha).astype(dtype)
    if fixed is not None:
        checks.check_shapes(("alpha",), (fixed,), (shape,))

    def init(key: Key) -> dict[str, Any]:
        checks.check_key("key", key)
        network_key, alpha_key = jax.random.split(key)
        networks = jax.vmap(network.init)(jax.random.split(network_key, num_latents))
        drawn = {"alpha": jax.random.normal(alpha_key, shape, dtype)} if fixed is None else {}
        return {"networks": networks, **drawn}

    def apply(params: Params, x: ArrayLike) -> Float[Array, "points latents"]:
        x = _points(x, num_inputs)
        params = as_entries(params, ("networks", "alpha") if fixed is None else ("networks",))
        mask = params["alpha"] if fixed is None else fixed
        if norm == "softmax":
            mask = jax.nn.softmax(jnp.abs(mask), axis=1)
        checks.check_shapes(("params['alpha']",), (mask,), (shape,))
        mask = jnp.where((least > 0) & (mask < least), 0, mask)

        def latent(weights: Params, row: Array) -> Array:
            return network.apply(weights, jnp.multiply(*promoted(x, row)))[:, 0]

        return jax.vmap(latent, out_axes=1)(params["networks"], mask)

    return Generator(init, apply)


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

    The params are `a [M, num_latents]`, `w [num_inputs, M]` and `b [M]`. The latents of a draw have their own
    `a` and share `w` and `b`: they are uncorrelated, and independent up to a share of `1/M`, which is also
    the distance of f from Gaussian.

    Args:
      num_inputs, num_latents, dtype: as of `mlp_generator`.
      length_scale: positive distance over which f changes, in units of x; may be traced.
      scale: positive standard deviation of `f(x)`; may be traced.
      num_features: M, the number of cosines.

    Example:
      >>> generator = gaussian_process_generator(1, 5, length_scale=0.3)
      >>> generator.apply(generator.init(jax.random.key(0)), jnp.ones((20, 1))).shape
      (20, 5)

    References:
      Rahimi, Recht, Random features for large-scale kernel machines,
      https://papers.nips.cc/paper/2007/hash/013a006f03dbc5392effeb8f18fda755-Abstract.html, 2007.
    """
    counts = {"num_inputs": num_inputs, "num_latents": num_latents, "num_features": num_features}
    for name, count in counts.items():
        checks.check_count(name, count)
    checks.check_floating_dtype("dtype", dtype)
    shapes = {"a": (num_features, num_latents), "w": (num_inputs, num_features), "b": (num_features,)}
    checks.check_memory(", ".join(counts), list(shapes.values()), dtype)
    checks.check_positive("length_scale", length_scale)
    checks.check_positive("scale", scale)

    def init(key: Key) -> dict[str, Array]:
        checks.check_key("key", key)
        a_key, w_key, b_key = jax.random.split(key, 3)
        return {
            "a": jax.random.normal(a_key, shapes["a"], dtype),
            "w": jax.random.normal(w_key, shapes["w"], dtype),
            "b": jax.random.uniform(b_key, shapes["b"], dtype, 0, 2 * math.pi),
        }

    def apply(params: Params, x: ArrayLike) -> Float[Array, "points latents"]:
        x = _points(x, num_inputs)
        params = as_entries(params, tuple(shapes))
        checks.check_shapes(
            [f"params[{n!r}]" for n in shapes], [params[n] for n in shapes], list(shapes.values())
        )
        scales = jnp.asarray(length_scale, dtype), jnp.asarray(scale, dtype)
        x, a, w, b, length, height = promoted(x, params["a"], params["w"], params["b"], *scales)
        return height * math.sqrt(2 / num_features) * (jnp.cos(x / length @ w + b) @ a)

    return Generator(init, apply)


def _points(x: ArrayLike, num_inputs: int) -> Array:
    """Returns x as an array; raises unless it is floating `[points, num_inputs]`, with a point."""
    points = checks.as_floating("x", x)
    check_inputs(points, (num_inputs,))
    return points
