"""The rounding error of gradients, and cosines where it is small."""

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

DRAWS = 4
"""Draws of signs: with one draw a single number may keep its value."""


def rounding_error(gradient: Callable[[Params], PyTree], key: Key, params: Params) -> PyTree:
    """Measures how far a gradient moves when every parameter moves by one rounding.

    `g(params (1 + eps s)) - g(params)` with random signs `s`, root mean square over four draws of signs.
    `eps` is that of the parameter's type, or of the coarsest floating type that occurs in the gradient's
    program: bfloat16 for a model that casts float32 parameters to it.

    Parts of a gradient no larger than this are rounding errors, for example one that is zero after exact
    cancellation, or an estimate whose sigma is too small for the precision of the loss. Costs five gradients.

    Args:
      gradient: `params -> gradients`, the same function each time: a rule with draws keeps its key.
      key: for the signs.
      params: of the model; leaves that are not floating stay as they are, and so do zeros, which have no
        rounding of their own.

    Returns:
      The distance of every entry, a pytree as the gradient; its share of the gradient is
      `by_path(relative_norm, error, gradients)`.

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

    def moved(key: Key) -> Params:
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(key, max(len(leaves), 1))
        pairs = zip(leaves, keys, strict=False)
        return jax.tree.unflatten(structure, [_one_rounding_off(leaf, own, coarsest) for leaf, own in pairs])

    program, _ = equations.trace(gradient_at, params)
    results = (var.aval.dtype for each in equations.all_equations(program.jaxpr) for var in each.outvars)
    coarsest = max((_spacing(dtype) for dtype in results), default=0.0)
    at = gradient_at(params)
    distances = jax.lax.map(
        lambda key: jax.tree.map(jnp.subtract, gradient_at(moved(key)), at), jax.random.split(key, DRAWS)
    )
    return jax.tree.map(partial(root_mean_square, axes=(0,)), distances)


def _spacing(dtype: Any) -> float:
    """Returns the distance from 1 to the next number of a floating type, 0 for other types."""
    return float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.floating) else 0.0


def _one_rounding_off(leaf: Array, key: Key, coarsest: float) -> Array:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    signs = jax.random.rademacher(key, leaf.shape, leaf.dtype)
    return leaf * (1 + signs * max(_spacing(leaf.dtype), coarsest)).astype(leaf.dtype)


def resolved_cosine(a: PyTree, b: PyTree, error: PyTree) -> Array:
    """Computes `cosine_similarity(a, b)` where `b` is larger than its rounding error, and NaN elsewhere.

    NaN unless `|error| < |b| / 2`, so also for a `b` of zeros: a larger error may turn `b` by 30 degrees or
    more. By layer, use `by_path(resolved_cosine, a, b, error, depth=1)`.

    Args:
      a: any pytree of arrays, for example gradients.
      b: the reference, of the same structure and shapes.
      error: of the reference, as by `rounding_error`.

    Example:
      >>> b = jnp.array([1e-9, 0.0])
      >>> [float(resolved_cosine(b, b, jnp.array([error, 0.0]))) for error in (1e-14, 1e-9)]
      [1.0, nan]
    """
    check_same_structure(("error", "b"), (error, b))
    cosine = cosine_similarity(a, b)
    return jnp.where(relative_norm(error, b) < 0.5, cosine, jnp.nan)
