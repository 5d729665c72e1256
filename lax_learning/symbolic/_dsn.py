"""Disentangled sparsity networks, and what they share with the other generators."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import variance_scaling, zeros
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from lax_learning._checks import (
    as_array,
    as_floating,
    as_params,
    check_choice,
    check_count,
    check_inputs,
    check_key,
    check_not_negative,
    check_scalar,
    check_shapes,
    describe,
)
from lax_learning._precision import promoted
from lax_learning.symbolic._relu_network import relu_network, torch_uniform
from lax_learning.types import Key, Params

NORMS = ("none", "softmax")
BIASES = (False, True, "zeros")


class Generator(NamedTuple):
    """A distribution of functions; many draws at once come from `jax.vmap` over the keys.

    Fields:
      init: `key -> params`, a fresh draw.
      apply: `(params, x [points, columns]) -> latents [points, latents]`, each point on its own.
    """

    init: Callable[[Key], Params]
    apply: Callable[[Params, ArrayLike], Array]


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

    The standard deviation `sqrt(6 / (fan_in + fan_out))` is the published one: the bound of Xavier's
    uniform weights, sqrt(3) times their standard deviation. Without biases, or with those that start at
    0, an untrained network is linear on each side of 0 along every line through it.

    Args:
      num_inputs: columns of `x [points, num_inputs]`.
      num_latents: columns of the output `[points, num_latents]`.
      hidden: widths of the hidden layers of each latent's network.
      alpha: the mask `[num_latents, num_inputs]`, kept fixed; None for one drawn from N(0, 1) that is
        part of the params and so is trained with them.
      norm: "softmax" for `softmax(|alpha|)` over the inputs; "none" for alpha as it is.
      prune: entries of the normalised mask below it become 0, negative ones too; at 0 none does.
      bias: False for no biases, True for `U(-r, r)` with `r = 1 / sqrt(fan_in)`, "zeros" for the
        published ones, which start at 0 and are trained.
      dtype: of the parameters.

    Returns:
      The generator. Its params are a dict of `networks`, those of an `mlp` with the latents as a
      first axis, and of `alpha` unless it was given.

    Raises:
      TypeError, ValueError: for sizes that are no positive ints, an unknown norm or bias, a negative
        prune, or alpha of another shape; when applied, for x that is no floating
        `[points, num_inputs]` or has no points.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> generator = dsn_generator(2, 3, norm="softmax", prune=0.1)
      >>> params = generator.init(jax.random.key(0))
      >>> params["networks"][0]["w"].shape, params["alpha"].shape
      ((3, 2, 32), (3, 2))
      >>> generator.apply(params, jnp.ones((20, 2))).shape
      (20, 3)

    References:
      symrep, https://github.com/fabxy/symrep, 2022.
    """
    check_count("num_latents", num_latents)
    check_choice("norm", norm, NORMS)
    check_not_negative("prune", prune)
    check_scalar("prune", prune)
    if not (isinstance(bias, bool) or (isinstance(bias, str) and bias in BIASES)):
        raise ValueError(f"bias: expected one of {list(BIASES)}, got {bias!r}")
    b_init = {False: None, True: torch_uniform, "zeros": lambda fan_in: zeros}[bias]
    normal = variance_scaling(3.0, "fan_avg", "normal")
    network = relu_network(
        num_inputs, hidden, 1, lambda fan_in: normal, b_init, dtype, copies=int(num_latents)
    )
    shape = (num_latents, num_inputs)
    least = jnp.asarray(prune, dtype)
    fixed = None if alpha is None else _mask(alpha, shape, dtype)

    def init(key: Key) -> dict[str, Any]:
        check_key("key", key)
        network_key, alpha_key = jax.random.split(key)
        params: dict[str, Any] = {
            "networks": jax.vmap(network.init)(jax.random.split(network_key, num_latents))
        }
        if fixed is None:
            params["alpha"] = jax.random.normal(alpha_key, shape, dtype)
        return params

    def apply(params: Params, x: ArrayLike) -> Float[Array, "points latents"]:
        x = as_floating("x", x)
        check_inputs(x, (num_inputs,))
        check_entries(params, ("networks",) if fixed is not None else ("networks", "alpha"))
        params = as_params(params)
        mask = params["alpha"] if fixed is None else fixed
        if norm == "softmax":
            mask = jax.nn.softmax(jnp.abs(mask), axis=1)
        check_shapes(("params['alpha']",), (mask,), (shape,))
        mask = jnp.where((least > 0) & (mask < least), 0, mask)

        def latent(weights: Params, row: Array) -> Array:
            outputs = network.apply(weights, jnp.multiply(*promoted(x, row)))
            return outputs[:, 0]

        return jax.vmap(latent, out_axes=1)(params["networks"], mask)

    return Generator(init, apply)


def check_entries(params: Any, entries: Sequence[str]) -> None:
    """Raises ValueError unless params are a dict with these entries."""
    if not isinstance(params, Mapping) or any(params.get(e) is None for e in entries):
        got = (
            sorted(name for name in params if params[name] is not None)
            if isinstance(params, Mapping)
            else describe(params)
        )
        raise ValueError(f"params: expected a dict with the entries {list(entries)}, got {got}")


def _mask(alpha: ArrayLike, shape: tuple[int, int], dtype: DTypeLike) -> Array:
    """A given mask in the dtype of the parameters."""
    alpha = as_array("alpha", alpha)
    check_shapes(("alpha",), (alpha,), (shape,))
    return alpha.astype(dtype)
