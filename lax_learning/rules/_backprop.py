"""Backpropagation for any model, the reference for all other rules."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lax_learning._checks import check_key
from lax_learning._sites._batch import as_batch
from lax_learning._sites._program import Program
from lax_learning._sites._run import Hooks
from lax_learning.models import Model, Split
from lax_learning.rules import _common as common
from lax_learning.types import Key, Loss, Params, Rule, Signals


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

    def value_and_grad(key: Key, params: Params, state: Any, x: Any, y: Any) -> tuple[Any, Params, Any]:
        check_key("key", key)
        x, size = as_batch(x)
        split = Split(model, params)

        def mean_loss(parameters: list[Any]) -> tuple[Any, Any]:
            output, aux = model(split.merge(parameters), x)
            return jnp.mean(common.losses_of(loss, output, y, size)), aux

        (value, aux), grads = jax.value_and_grad(mean_loss, has_aux=True)(split.parameters)
        return common.joined(value, aux, model), split.gradients(grads), state

    def signals(key: Key, params: Params, state: Any, x: Any, y: Any) -> Signals:
        check_key("key", key)
        common.check_one(x)
        x, size = as_batch(x)
        program = Program(model, params, x)

        def mean_loss(feeds: dict[int, Array]) -> Array:
            output, _, _ = program.run(program.split.parameters, x, Hooks(end=common.add), feeds=feeds)
            return jnp.mean(common.losses_of(loss, output, y, size))

        return Signals(common.named(jax.grad(mean_loss)(common.starting(program, True)), program))

    return Rule(common.stateless(model), value_and_grad, model.trainable, signals)
