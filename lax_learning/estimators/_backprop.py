"""Backpropagation, the exact gradient, with the signature of the estimators."""

from collections.abc import Callable
from typing import Any

import jax

from lax_learning._arrays import as_params
from lax_learning._checks import check_key
from lax_learning.estimators._draws import join_aux, split_aux
from lax_learning.types import Estimator, Key, Params


def backprop(loss_fn: Callable[..., Any], *, has_aux: bool = False) -> Estimator:
    """Computes the exact gradient by reverse-mode differentiation, `g = dL/dparams`.

    Args:
      loss_fn: `(params, *args) -> loss`, a scalar, or an array with one loss per example, which is averaged;
        with `has_aux`, `(loss, aux)`, as in `jax.value_and_grad`.

    Returns:
      `estimate(key, params, *args) -> (value, grads)`, or `((value, aux), grads)`; the key is not used.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> estimate = backprop(lambda w: jnp.sum(w**2))
      >>> value, grads = estimate(jax.random.key(0), jnp.array([1.0, 2.0]))
      >>> float(value), grads.tolist()
      (5.0, [2.0, 4.0])
    """
    checked = split_aux(loss_fn, has_aux)

    def estimate(key: Key, params: Params, *args: Any, **kwargs: Any) -> tuple[Any, Params]:
        check_key("key", key)
        params = as_params(params)

        def mean_loss(params: Params) -> tuple[Any, Any]:
            loss, aux = checked(params, *args, **kwargs)
            return join_aux(loss, None, False), aux

        (value, aux), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
        return join_aux(value, aux, has_aux), grads

    return estimate
