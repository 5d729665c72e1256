"""What the perturbation estimators share: losses, aux, and means over draws in bounded memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from lax_learning._precision import raised
from lax_learning.types import Key


def split_aux(loss_fn: Callable[..., Any], has_aux: bool) -> Callable[..., tuple[Array, Any]]:
    """`loss_fn` as a function that returns `(loss, aux)` whether or not it has one, checked."""

    def checked(*args: Any, **kwargs: Any) -> tuple[Array, Any]:
        out = loss_fn(*args, **kwargs)
        if has_aux and not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(
                f"loss_fn: expected a pair (loss, aux) because of has_aux, got {type(out).__name__}"
            )
        loss, aux = out if has_aux else (out, None)
        if not isinstance(loss, jax.Array) or not jnp.issubdtype(loss.dtype, jnp.floating):
            got = getattr(loss, "dtype", type(loss).__name__)
            raise TypeError(f"loss_fn: expected a floating loss, or one an example, got {got}")
        return loss, aux

    return checked


def join_aux(loss: Array, aux: Any, has_aux: bool) -> Any:
    """The value of an estimator as `jax.value_and_grad` gives it; per-example losses are averaged."""
    value = jnp.mean(loss)
    return (value, aux) if has_aux else value


def scaled(factor: Array, leaf: Array) -> Array:
    """`factor * leaf` in the dtype of the leaf, computed in the wider of the two."""
    dtype = raised(factor, leaf)
    return (factor.astype(dtype) * leaf.astype(dtype)).astype(leaf.dtype)


def mean_over_draws(draw: Callable[[Key], PyTree], key: Key, num_samples: int) -> PyTree:
    """`1/K sum_k draw(key_k)`, one draw in memory at a time, summed in float32 or wider."""
    if num_samples == 1:
        return draw(key)

    def widen(leaf: Array) -> Array:
        return leaf.astype(raised(leaf))

    def add(total: PyTree, key: Key) -> tuple[PyTree, None]:
        return jax.tree.map(lambda t, g: t + widen(g), total, draw(key)), None

    shapes = jax.eval_shape(draw, key)
    zeros = jax.tree.map(lambda s: widen(jnp.zeros(s.shape, s.dtype)), shapes)
    total, _ = jax.lax.scan(add, zeros, jax.random.split(key, num_samples))
    return jax.tree.map(lambda t, s: (t / num_samples).astype(s.dtype), total, shapes)
