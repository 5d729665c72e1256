"""Generators of curves that are not symbolic functions: untrained networks and Gaussian processes."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, variance_scaling, zeros
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from lax_learning import _checks as checks
from lax_learning._arrays import as_params
from lax_learning._precision import promoted
from lax_learning.models import Model
from lax_learning.networks import dense_layers, identity
from lax_learning.symbolic.formulas import as_points
from lax_learning.types import Key, Params


class Generator(NamedTuple):
    """A distribution over functions; use `jax.vmap` over keys for several draws at once.

    Fields:
      init: `key -> params`, a new draw.
      apply: `(params, x [points, columns]) -> latents [points, latents]`, independently for each point.
    """

    init: Callable[[Key], Params]
    apply: Callable[[Params, ArrayLike], Array]


def mlp_generator(
    num_inputs: int, num_latents: int, *, hidden: Sequence[int] = (32, 32), dtype: DTypeLike = jnp.float32
) -> Generator:
    """An untrained ReLU network whose latents share the hidden layers.

    `a_0 = x`, `a_l = relu(a_{l-1} w_l + b_l)` with a linear last layer; `w_l, b_l ~ U(-r, r)` with
    `r = 1 / sqrt(fan_in)`, as in PyTorch's linear layers.

    Args:
      num_inputs: columns of `x [points, num_inputs]`.
      num_latents: columns of the output `[points, num_latents]`.
      hidden: widths of the hidden layers; empty for a linear function.
      dtype: dtype of the params, which are those of an `mlp`.

    Example:
      >>> generator = mlp_generator(1, 5)
      >>> generator.apply(generator.init(jax.random.key(0)), jnp.ones((20, 1))).shape
      (20, 5)
    """
    checks.check_count("num_inputs", num_inputs)
    checks.check_count("num_latents", num_latents)
    network = relu_network((num_inputs, *checks.as_sizes("hidden", hidden), num_latents), dtype)

    def apply(params: Params, x: ArrayLike) -> Float[Array, "points latents"]:
        return network.apply(params, as_points(x, num_inputs, exactly=True))

    return Generator(network.init, apply)


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
    """A disentangled sparsity network: a separate ReLU network for each latent, with a masked input.

    `latent_i = f_i(x * m_i)`, `m = prune(norm(alpha))`, `w ~ N(0, 6 / (fan_in + fan_out))`

    The standard deviation is the published one, sqrt(3) times that of Xavier initialisation. An untrained
    network with biases of 0 is linear on each side of the origin, along every line through it. The params are
    a dict with `networks`, the params of an `mlp` with latents as the first axis, and `alpha` if not given.

    Args:
      num_inputs, num_latents, dtype: as for `mlp_generator`.
      hidden: widths of the hidden layers of each latent's network.
      alpha: fixed mask `[num_latents, num_inputs]`; None draws it from N(0, 1) and makes it one of the
        params, so that it is trained.
      norm: "softmax" applies `softmax(|alpha|)` over the inputs; "none" uses alpha unchanged.
      prune: threshold >= 0; smaller entries of the normalised mask, negative ones too, become 0. With 0,
        nothing is pruned.
      bias: False for no biases; True for `U(-r, r)` with `r = 1 / sqrt(fan_in)`; "zeros" for trainable
        biases that start at 0, as published.

    Example:
      >>> generator = dsn_generator(2, 3, norm="softmax", prune=0.1)
      >>> params = generator.init(jax.random.key(0))
      >>> params["networks"][0]["w"].shape, params["alpha"].shape
      ((3, 2, 32), (3, 2))
    """
    checks.check_count("num_inputs", num_inputs)
    checks.check_samples("num_latents", num_latents)
    checks.check_choice("norm", norm, ("none", "softmax"))
    checks.check_not_negative("prune", prune)
    if not (isinstance(bias, bool) or (isinstance(bias, str) and bias == "zeros")):
        raise ValueError(f"bias: expected one of [False, True, 'zeros'], got {bias!r}")
    normal = variance_scaling(3.0, "fan_avg", "normal")
    b_inits = {False: lambda fan_in: None, True: torch_uniform, "zeros": lambda fan_in: zeros}
    widths = num_inputs, *checks.as_sizes("hidden", hidden), 1
    network = relu_network(widths, dtype, lambda fan_in: normal, b_inits[bias])
    shape, least = (num_latents, num_inputs), jnp.asarray(prune, dtype)
    fixed: dict[str, Array] = {}
    if alpha is not None:
        fixed["alpha"] = checks.as_array("alpha", alpha).astype(dtype)
        checks.check_shapes(["alpha"], [fixed["alpha"]], [shape])

    def init(key: Key) -> dict[str, Any]:
        checks.check_key("key", key)
        network_key, alpha_key = jax.random.split(key)
        networks = jax.vmap(network.init)(jax.random.split(network_key, num_latents))
        drawn = {} if fixed else {"alpha": jax.random.normal(alpha_key, shape, dtype)}
        return {"networks": networks, **drawn}

    def apply(params: Params, x: ArrayLike) -> Float[Array, "points latents"]:
        x = as_points(x, num_inputs, exactly=True)
        params = as_entries(params, ("networks",) if fixed else ("networks", "alpha")) | fixed
        checks.check_shapes(["params['alpha']"], [params["alpha"]], [shape])
        mask = params["alpha"] if norm == "none" else jax.nn.softmax(jnp.abs(params["alpha"]), axis=1)
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

    The params are `a [M, num_latents]`, `w [num_inputs, M]` and `b [M]`. The latents of a draw share `w` and
    `b` but not `a`: they are uncorrelated, but Gaussian and independent only up to errors of order `1/M`.

    Args:
      num_inputs, num_latents, dtype: as for `mlp_generator`.
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
        x, params = as_points(x, num_inputs, exactly=True), as_entries(params, tuple(shapes))
        for name, expected in shapes.items():
            checks.check_shapes([f"params[{name!r}]"], [params[name]], [expected])
        scales = jnp.asarray(length_scale, dtype), jnp.asarray(scale, dtype)
        x, a, w, b, length, height = promoted(x, params["a"], params["w"], params["b"], *scales)
        return height * math.sqrt(2 / num_features) * (jnp.cos(x / length @ w + b) @ a)

    return Generator(init, apply)


def torch_uniform(fan_in: int) -> Initializer:
    """Returns a uniform initialiser within +-1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)
    return partial(jax.random.uniform, minval=-bound, maxval=bound)


def relu_network(
    widths: Sequence[int],
    dtype: DTypeLike,
    w_init: Callable[[int], Initializer] = torch_uniform,
    b_init: Callable[[int], Initializer | None] = torch_uniform,
) -> Model:
    """Builds ReLU layers and a linear output layer; initialisers are made from the fan-in."""
    checks.check_floating_dtype("dtype", dtype)
    pairs = list(pairwise(widths))
    checks.check_memory("widths of the layers", pairs, dtype)
    layers = [{"w": ((n, m), w_init(n)), "b": ((m,), b_init(n))} for n, m in pairs]
    return dense_layers(layers, (*[jax.nn.relu] * (len(pairs) - 1), identity), dtype)


def as_entries(params: Any, entries: Sequence[str]) -> Any:
    """Returns params as arrays; raises unless they are a dict with these entries."""
    is_dict = isinstance(params, Mapping)
    if not is_dict or any(params.get(entry) is None for entry in entries):
        got = [name for name in params if params[name] is not None] if is_dict else checks.describe(params)
        raise ValueError(f"params: expected a dict with the entries {list(entries)}, got {got}")
    return as_params(params)
