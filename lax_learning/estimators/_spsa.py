"""SPSA: simultaneous perturbation stochastic approximation, with Spall's gain schedules."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike

from lax_learning import _checks as checks
from lax_learning._arrays import as_params
from lax_learning.estimators._weight_perturbation import weight_perturbation
from lax_learning.types import Key, Params


class Gains(NamedTuple):
    """Spall's gain sequences as optax schedules, functions of the number of updates done."""

    learning_rate: optax.Schedule
    perturbation: optax.Schedule


def spall_gains(
    a: ArrayLike, c: ArrayLike, *, A: ArrayLike = 0.0, alpha: ArrayLike = 0.602, gamma: ArrayLike = 0.101
) -> Gains:
    """Returns Spall's schedules for step size and perturbation, with his recommended exponents.

    `learning_rate(k) = a / (k + 1 + A)^alpha` for any optax optimiser, and
    `perturbation(k) = c / (k + 1)^gamma` for `spsa`, after k updates.

    Args:
      a: numerator of the step size, in units of parameters^2 / loss; may be traced, like all arguments.
      c: first perturbation, in the units of the parameters; about the standard deviation of the noise
        that the loss itself has.
      A: stability constant, in updates; Spall recommends a tenth of the number of updates.
      alpha, gamma: decay exponents of the step size and of the perturbation.

    Example:
      >>> gains = spall_gains(a=1.0, c=0.1, A=9.0)
      >>> round(float(gains.learning_rate(0)), 4), round(float(gains.perturbation(0)), 4)
      (0.25, 0.1)

    References:
      Spall, Implementation of the simultaneous perturbation algorithm for stochastic optimization,
      https://doi.org/10.1109/7.705889, 1998.
    """
    for name, value in (("a", a), ("c", c)):
        checks.check_positive(name, value)
        checks.check_resolved(name, value, jnp.result_type(float))
    for name, value in (("A", A), ("alpha", alpha), ("gamma", gamma)):
        checks.check_not_negative(name, value)

    def number(count: ArrayLike) -> Array:
        return _as_count(count).astype(jnp.result_type(float)) + 1

    return Gains(
        learning_rate=lambda count: a / (number(count) + A) ** alpha,
        perturbation=lambda count: c / number(count) ** gamma,
    )


def _as_count(count: Any) -> Array:
    array = checks.as_array("count", count)
    if array.dtype == bool:
        raise TypeError(f"count: expected the number of updates done, got {checks.describe(array)}")
    if not isinstance(array, Tracer) and bool(np.any(np.asarray(array) < 0)):
        raise ValueError(f"count: expected the number of updates done, at least 0, got {count!r}")
    return array


def spsa(
    loss_fn: Callable[..., Any], *, perturbation: optax.Schedule, num_samples: int = 1, has_aux: bool = False
) -> Callable[..., tuple[Any, Params]]:
    """Estimates the gradient by SPSA: weight perturbation with random signs and central differences.

    `g = 1/K sum_k (L(w + c_t s_k) - L(w - c_t s_k)) s_k / (2 c_t)`, `s = +-1`, after t updates

    Args:
      loss_fn, has_aux: as in `weight_perturbation`.
      perturbation: `count -> c_t`, for example `spall_gains(...).perturbation`.
      num_samples: number K of draws to average.

    Returns:
      `estimate(key, params, *args, count) -> (value, grads)`, where `count` is the number of updates done,
      such as the count in the state of an optax optimiser; may be traced.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> gains = spall_gains(a=0.1, c=0.01, A=10.0)
      >>> estimate = jax.jit(spsa(lambda w: jnp.sum(w**2), perturbation=gains.perturbation))
      >>> optimizer = optax.sgd(gains.learning_rate)
      >>> w = jnp.ones(3)
      >>> state = optimizer.init(w)
      >>> for count in range(100):
      ...     value, grads = estimate(jax.random.key(count), w, count=count)
      ...     updates, state = optimizer.update(grads, state, w)
      ...     w = optax.apply_updates(w, updates)
      >>> bool(jnp.sum(w**2) < 1.0)
      True

    References:
      Spall, Multivariate stochastic approximation using a simultaneous perturbation gradient
      approximation, https://doi.org/10.1109/9.119632, 1992.
    """
    expected = "a schedule, such as spall_gains(0.1, 0.1).perturbation"
    checks.check_callable("perturbation", perturbation, expected)
    at_sigma = partial(
        weight_perturbation, loss_fn, num_samples=num_samples, difference="central", noise="rademacher",
        has_aux=has_aux,
    )  # fmt: skip
    at_sigma(sigma=1.0)  # checks the other arguments

    def estimate(
        key: Key, params: Params, *args: Any, count: int | Array, **kwargs: Any
    ) -> tuple[Any, Params]:
        checks.check_key("key", key)
        params, by = as_params(params), perturbation(_as_count(count))
        checks.check_positive("perturbation(count)", by)
        checks.check_resolved("perturbation(count)", by, *(leaf.dtype for leaf in jax.tree.leaves(params)))
        return at_sigma(sigma=by)(key, params, *args, **kwargs)

    return estimate
