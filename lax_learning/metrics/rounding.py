"""Rounding errors of gradients, and cosines that are NaN if the rounding error is too large."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from lax_learning._arrays import as_arrays, as_real_leaves, check_same_structure
from lax_learning._checks import check_callable, check_key
from lax_learning._scaling import root_mean_square
from lax_learning._sites import _equations as equations
from lax_learning.metrics.alignment import cosine_similarity, relative_norm
from lax_learning.types import Key, Params

DRAWS = 4  # of signs; with only one, an entry may keep its value by chance


def rounding_error(gradient: Callable[[Params], PyTree], key: Key, params: Params) -> PyTree:
    """Measures how much every entry of a gradient changes if every parameter changes by one rounding error.

    `g(params (1 + eps s)) - g(params)` with random signs `s`; root mean square over four draws of signs.
    `eps` is that of the parameter's dtype, or of the coarsest floating-point dtype in the program of the
    gradient, for example bfloat16 if the model casts float32 parameters to it. Costs five gradients.

    Parts of a gradient no larger than this are rounding errors, for example a gradient that would be zero in
    exact arithmetic, or an estimate whose sigma is too small for the precision of the loss. For the size
    relative to the gradient, use `by_path(relative_norm, error, gradients)`.

    Args:
      gradient: `params -> gradients`, a deterministic function: a rule with draws must use a fixed key.
      key: PRNG key for the signs.
      params: parameters of the model. Non-floating leaves and zeros are not changed.

    Example:
      >>> from lax_learning.metrics import by_path
      >>> def loss(p):  # the shift cancels
      ...     z = p["slope"] * jnp.array([0.1, 0.7, 0.6]) + p["shift"]
      ...     return jnp.sum(jnp.tanh(z - jnp.mean(z)))
      >>> p = {"slope": jnp.array(1.3), "shift": jnp.array(0.2)}
      >>> grads, error = jax.grad(loss)(p), rounding_error(jax.grad(loss), jax.random.key(0), p)
      >>> cosines = by_path(resolved_cosine, grads, grads, error)
      >>> round(float(cosines["slope"]), 3), float(cosines["shift"])
      (1.0, nan)
    """
    check_callable("gradient", gradient, "a function params -> gradients", num_arguments=1)
    check_key("key", key)
    params = as_arrays("params", params)

    def gradient_at(params: Params) -> PyTree:
        return as_real_leaves("gradient(params)", gradient(params))

    program, _ = equations.trace(gradient_at, params)
    results = (var.aval.dtype for each in equations.all_equations(program.jaxpr) for var in each.outvars)
    coarsest = max(map(_spacing, results), default=0.0)

    def moved(key: Key, leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        signs = jax.random.rademacher(key, leaf.shape, leaf.dtype)
        return leaf * (1 + signs * max(_spacing(leaf.dtype), coarsest)).astype(leaf.dtype)

    leaves, structure = jax.tree.flatten(params)
    at = gradient_at(params)

    def distance(key: Key) -> PyTree:
        keys = jax.random.split(key, max(len(leaves), 1))
        return jax.tree.map(jnp.subtract, gradient_at(structure.unflatten(map(moved, keys, leaves))), at)

    distances = jax.lax.map(distance, jax.random.split(key, DRAWS))
    return jax.tree.map(partial(root_mean_square, axes=(0,)), distances)


def _spacing(dtype: Any) -> float:
    """Returns the distance from 1 to the next number of a floating-point dtype, 0 for other dtypes."""
    return float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.floating) else 0.0


def resolved_cosine(a: PyTree, b: PyTree, error: PyTree) -> Array:
    """Computes `cosine_similarity(a, b)` if the reference `b` is larger than its rounding error, else NaN.

    NaN unless `|error| < |b| / 2`, because a larger error may rotate `b` by 30 degrees or more; also NaN if
    `b` is zero. `error` has the structure of `b`, for example from `rounding_error`. For each layer, use
    `by_path(resolved_cosine, a, b, error, depth=1)`.

    Example:
      >>> b = jnp.array([1e-9, 0.0])
      >>> [float(resolved_cosine(b, b, jnp.array([error, 0.0]))) for error in (1e-14, 1e-9)]
      [1.0, nan]
    """
    check_same_structure(("error", "b"), (error, b))
    cosine = cosine_similarity(a, b)
    return jnp.where(relative_norm(error, b) < 0.5, cosine, jnp.nan)
