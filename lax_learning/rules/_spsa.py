"""SPSA for any model: the estimator applied to the model's losses, with the number of updates as state."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from lax_learning import estimators
from lax_learning.models import Model
from lax_learning.rules._common import Result
from lax_learning.rules._estimates import estimator_rule
from lax_learning.rules._feedback import check_state
from lax_learning.types import Key, Loss, Params, Rule


class SpsaState(NamedTuple):
    """State of SPSA: the number of updates done."""

    num_updates: Int[Array, ""]


def spsa(model: Model, loss: Loss, *, perturbation: optax.Schedule, num_samples: int = 1) -> Rule:
    """Weight perturbation with random signs, central differences, and a perturbation that shrinks.

    `dw = 1/K sum_k (L(w + c_t s_k) - L(w - c_t s_k)) s_k / (2 c_t)`, `s = +-1`, at update t; see
    `estimators.spsa`.

    Args:
      perturbation: `count -> c_t`, in the units of the parameters, for example
        `estimators.spall_gains(...).perturbation`.
      num_samples: number K of draws to average.

    Returns:
      The rule, with an `SpsaState`; each call of `value_and_grad` counts as an update.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import lax_learning as ll
      >>> gains = ll.estimators.spall_gains(a=0.1, c=0.01, A=10.0)
      >>> rule = spsa(ll.Model(lambda w, x: x @ w), ll.squared_error, perturbation=gains.perturbation)
      >>> key, w, x = jax.random.key(0), jnp.ones((3, 2)), jnp.ones((5, 3))
      >>> state, y = rule.init(key, w, x), jnp.zeros((5, 2))
      >>> loss, grads, state = jax.jit(rule.value_and_grad)(key, w, state, x, y)
      >>> int(state.num_updates)
      1
    """
    rule = estimator_rule(
        estimators.spsa, model, loss, differences=True, perturbation=perturbation, num_samples=num_samples
    )

    def init(key: Key, params: Params, x: Any) -> SpsaState:
        rule.init(key, params, x)
        return SpsaState(jnp.zeros((), jnp.int32))

    def value_and_grad(key: Key, params: Params, state: SpsaState, x: Any, y: Any) -> Result:
        check_state(state, SpsaState)
        estimate: Any = rule.value_and_grad
        value, grads, _ = estimate(key, params, (), x, y, count=state.num_updates)
        return value, grads, SpsaState(state.num_updates + 1)

    return rule._replace(init=init, value_and_grad=value_and_grad)
