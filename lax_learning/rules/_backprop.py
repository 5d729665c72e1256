"""Backpropagation for any model, the reference for all other rules."""

from typing import Any

import jax
import jax.numpy as jnp

from lax_learning._checks import check_key
from lax_learning._sites._batch import as_batch
from lax_learning._sites._program import Program
from lax_learning._sites._run import Hooks
from lax_learning.models import Model, Split
from lax_learning.rules import _common as common
from lax_learning.rules._common import Result
from lax_learning.types import Key, Loss, Params, Rule


def backprop(model: Model, loss: Loss) -> Rule:
    """Computes the gradient by reverse-mode differentiation, `g = dL/dparams`.

    Example:
      >>> import lax_learning as ll
      >>> rule = backprop(ll.Model(lambda w, x: x @ w), ll.squared_error)
      >>> key, w = jax.random.key(0), jnp.ones((3, 2))
      >>> loss, grads, state = rule.value_and_grad(key, w, (), jnp.ones((5, 3)), jnp.zeros((5, 2)))
      >>> float(loss), grads.shape
      (18.0, (3, 2))

    References:
      Rumelhart, Hinton, Williams, Learning representations by back-propagating errors,
      https://doi.org/10.1038/323533a0, 1986.
    """
    common.check_parts(model, loss)

    def value_and_grad(
        key: Key, params: Params, state: Any, x: Any, y: Any, *, opened: bool = False
    ) -> Result:
        check_key("key", key)
        x, size = as_batch(x)
        program = Program(model, params, x) if opened else None  # taps only for signals
        split = program.split if program else Split(model, params)

        def mean_loss(moved: Any) -> tuple[Any, Any]:
            if program:
                output, aux, _ = program.run(split.parameters, x, Hooks(end=common.add), feeds=moved)
            else:
                output, aux = model(split.merge(moved), x)
            return jnp.mean(common.losses_of(loss, output, y, size)), aux

        at = common.starting(program, True) if program else split.parameters
        (value, aux), found = jax.value_and_grad(mean_loss, has_aux=True)(at)
        derived = common.result(program, True, found) if program else split.gradients(found)
        return common.joined(value, aux, model), derived, state

    return common.delta_rule(model, common.stateless(model), value_and_grad)
