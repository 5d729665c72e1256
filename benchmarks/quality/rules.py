"""The rules whose gradients are measured: those of the registry, the notebook's, and one's own.

A rule of your own is `--rules MODULE:FUNCTION`, `FUNCTION(model, loss) -> Rule`. With an argument `sigma` the
function is given that of the setting, and so takes part in the sweep over it.
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
    """Node perturbation as the notebook has it, on the dense networks of tanh of this benchmark."""

    def value_and_grad(key: Key, params: Params, *args: Any) -> tuple[Any, Params, Any]:
        activations = (*[jnp.tanh] * (len(params) - 1), lambda z: z)
        return notebook.node_perturbation(activations, loss, sigma=sigma).value_and_grad(key, params, *args)

    return ll.Rule(lambda key, params, x: (), value_and_grad)


DENSE_ALONE = ("node_perturbation_tutorial",)
"""Rules of dense networks alone; elsewhere their metrics are NaN."""

RULES: dict[str, Factory] = {**registry.RULES, "node_perturbation_tutorial": tutorial}


def make_rule(name: str, model: ll.Model, loss: ll.Loss, sigma: ArrayLike) -> ll.Rule:
    """The rule of that name, with noise of that size if it asks for it.

    Args:
      name: an entry of `RULES`, or `MODULE:FUNCTION`.
      model: the model.
      loss: per-example loss.
      sigma: standard deviation of the noise, in the units of what is perturbed; may be traced.

    Returns:
      The rule.

    Raises:
      ValueError: for an unknown name.
    """
    # The decay of Kolen-Pollack is no part of the gradient, and the optimizer moves nothing that is measured.
    # The gain of sign symmetry is the size of a typical initial weight.
    made = rule_of(RULES.get(name, name), sigma=sigma, gain=0.2, optimizer=optax.sgd(0.0), decay=0.0)
    return made(model, loss)


def averaged(rule: ll.Rule, num_samples: ArrayLike) -> ll.Rule:
    """The mean of independent gradients of a rule, in the memory of one.

    `g = 1/K sum_k g_k`: what any rule costs K times, with or without an option for it. K may be traced,
    so that one compiled program serves all.

    Args:
      rule: any rule.
      num_samples: number K >= 1 of gradients.

    Returns:
      A rule with the same state, which these gradients do not move.
    """

    def value_and_grad(
        key: Key, params: Params, state: Any, x: ArrayLike, y: ArrayLike
    ) -> tuple[Array, Params, Any]:
        def one(key: Key) -> tuple[Array, Params]:
            return rule.value_and_grad(key, params, state, x, y)[:2]

        def add(k: Array, total: tuple[Array, Params]) -> tuple[Array, Params]:
            return jax.tree.map(jnp.add, total, one(jax.random.fold_in(key, k)))

        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one, key))
        total = jax.lax.fori_loop(0, num_samples, add, zeros)
        mean = jax.tree.map(lambda leaf: leaf / jnp.asarray(num_samples, leaf.dtype), total)
        return *mean, state

    return ll.Rule(rule.init, value_and_grad)
