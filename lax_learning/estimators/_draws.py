"""Shared parts of the perturbation estimators: losses, aux, and means over draws in bounded memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from lax_learning._checks import as_floating, check_callable, check_flag, describe
from lax_learning._precision import raised
from lax_learning.types import Key, Params


def split_aux(loss_fn: Callable[..., Any], has_aux: bool) -> Callable[..., tuple[Array, Any]]:
    """Returns `loss_fn` as a function that always returns `(loss, aux)`, with checks."""
    check_callable("loss_fn", loss_fn, "a function (params, *args) -> loss")
    check_flag("has_aux", has_aux)

    def checked(*args: Any, **kwargs: Any) -> tuple[Array, Any]:
        out = loss_fn(*args, **kwargs)
        if has_aux and not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(f"loss_fn: expected a pair (loss, aux) because of has_aux, got {describe(out)}")
        loss, aux = out if has_aux else (out, None)
        try:
            if isinstance(loss, list | tuple) or getattr(loss, "ndim", 0) > 1:
                raise TypeError
            each = as_floating("loss_fn", loss)
        except TypeError:
            expected = "expected a scalar floating-point loss, or one loss per example"
            raise TypeError(f"loss_fn: {expected}, got {describe(loss)}") from None
        if each.size == 0:
            raise ValueError(f"loss_fn: expected the loss of at least one example, got {describe(each)}")
        return each, aux

    return checked


def join_aux(loss: Array, aux: Any, has_aux: bool) -> Any:
    """Returns the value of an estimator, as `jax.value_and_grad` does; losses of examples are averaged."""
    value = jnp.mean(loss)
    return (value, aux) if has_aux else value


def scaled(factor: Array, leaf: Array) -> Array:
    """Returns `factor * leaf` in the dtype of the leaf, computed in float32 or wider."""
    dtype = raised(factor, leaf)
    return (factor.astype(dtype) * leaf.astype(dtype)).astype(leaf.dtype)


def averaged(draw: Callable[[Key], PyTree], num_samples: int) -> Callable[[Key], PyTree]:
    """Returns `key -> 1/K sum_k draw(key_k)`, one draw in memory at a time, summed in float32 or wider."""

    def mean(key: Key) -> PyTree:
        def widen(leaf: Array) -> Array:
            return leaf.astype(raised(leaf))

        def add(total: PyTree, key: Key) -> tuple[PyTree, None]:
            return jax.tree.map(lambda t, g: t + widen(g), total, draw(key)), None

        shapes = jax.eval_shape(draw, key)
        zeros = jax.tree.map(lambda s: widen(jnp.zeros_like(s)), shapes)
        total, _ = jax.lax.scan(add, zeros, jax.random.split(key, num_samples))
        return jax.tree.map(lambda t, s: (t / num_samples).astype(s.dtype), total, shapes)

    return draw if num_samples == 1 else mean


def as_gradient(grads: Params, params: Params) -> Params:
    """Casts gradients to the dtypes of params; in `jax.shard_map`, sums them over devices that share a param.

    `jax.grad` does the same to cotangents; here, the transpose of adding 0 to the params does it.
    """
    zero_added, transpose = jax.vjp(
        lambda params: jax.tree.map(lambda w, g: w + jnp.zeros_like(g, w.dtype), params, grads), params
    )
    (summed,) = transpose(jax.tree.map(lambda g, w: g.astype(w.dtype), grads, zero_added))
    return summed
