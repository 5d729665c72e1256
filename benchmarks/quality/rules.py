"""Rules whose gradients are measured: those of the registry, of the notebook, and your own.

For your own rule, use `--rules MODULE:FUNCTION` with `FUNCTION(model, loss) -> Rule`. A function with an
argument `sigma` receives the value of the setting, which is varied in the sweep over sigma.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike

import lax_learning as ll
from experiments import registry
from experiments.microlearning import notebook
from experiments.registry import Factory, rule_of
from lax_learning.types import Key, Params


def tutorial(model: ll.Model, loss: ll.Loss, *, sigma: ArrayLike) -> ll.Rule:
    """Node perturbation as in the notebook, for the dense tanh networks of this benchmark."""

    def value_and_grad(key: Key, params: Params, *args: Any) -> tuple[Any, Params, Any]:
        activations = (*[jnp.tanh] * (len(params) - 1), lambda z: z)
        return notebook.node_perturbation(activations, loss, sigma=sigma).value_and_grad(key, params, *args)

    return ll.Rule(lambda key, params, x: (), value_and_grad)


DENSE_ALONE = ("node_perturbation_tutorial",)
"""Rules for dense networks only; their metrics on other networks are NaN."""

RULES: dict[str, Factory] = {**registry.RULES, "node_perturbation_tutorial": tutorial}


def make_rule(name: str, model: ll.Model, loss: ll.Loss, sigma: ArrayLike) -> ll.Rule:
    """Returns the rule of a name in `RULES`, or of `MODULE:FUNCTION`; `sigma` may be traced."""
    # Weight decay (of Kolen-Pollack) and the optimizer do not affect the gradient, so both are zero. The gain
    # of sign symmetry is the size of a typical initial weight.
    made = rule_of(RULES.get(name, name), sigma=sigma, gain=0.2, optimizer=optax.sgd(0.0), decay=0.0)
    return made(model, loss)


def averaged(rule: ll.Rule, num_samples: ArrayLike) -> ll.Rule:
    """Returns a rule with the mean of K independent gradients, `g = 1/K sum_k g_k`, in the memory of one.

    `num_samples`, K >= 1, may be traced, so that one compiled program serves all. The state is not updated.
    """

    def value_and_grad(key: Key, params: Params, state: Any, *batch: Any) -> tuple[Array, Params, Any]:
        def one(key: Key) -> tuple[Array, Params]:
            return rule.value_and_grad(key, params, state, *batch)[:2]

        def add(k: Array, total: tuple[Array, Params]) -> tuple[Array, Params]:
            return jax.tree.map(jnp.add, total, one(jax.random.fold_in(key, k)))

        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one, key))
        total = jax.lax.fori_loop(0, num_samples, add, zeros)
        mean = jax.tree.map(lambda leaf: leaf / jnp.asarray(num_samples, leaf.dtype), total)
        return *mean, state

    return ll.Rule(rule.init, value_and_grad)
