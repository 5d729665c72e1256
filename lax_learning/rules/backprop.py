"""Backpropagation on any model: the reference."""

from typing import Any

import jax
import jax.numpy as jnp

from lax_learning._checks import check_key
from lax_learning._sites._batch import as_batch
from lax_learning.models import Model, Split
from lax_learning.rules._common import check_one, check_parts, joined, losses_of, stateless
from lax_learning.rules._feedback import through_feedback
from lax_learning.types import Key, Loss, Params, Rule, Signals


def backprop(model: Model, loss: Loss) -> Rule:
    """The gradient by reverse-mode differentiation, `g = dL/dparams`.

    Args:
      model: any model.
      loss: per-example loss `(output, y) -> [batch]`.

    Returns:
      The rule; its state is empty.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import lax_learning as ll
      >>> from lax_learning.models import Model
      >>> rule = backprop(Model(lambda w, x: x @ w), ll.squared_error)
      >>> key, w = jax.random.key(0), jnp.ones((3, 2))
      >>> loss, grads, state = rule.value_and_grad(key, w, (), jnp.ones((5, 3)), jnp.zeros((5, 2)))
      >>> float(loss), grads.shape
      (18.0, (3, 2))

    References:
      Rumelhart, Hinton, Williams, Learning representations by back-propagating errors,
      https://doi.org/10.1038/323533a0, 1986.
    """
    check_parts(model, loss)

    def value_and_grad(key: Key, params: Params, state: Any, x: Any, y: Any) -> tuple[Any, Params, Any]:
        check_key("key", key)
        x, size = as_batch(x)
        split = Split(model, params)

        def mean_loss(parameters: list[Any]) -> tuple[Any, Any]:
            output, aux = model(split.merge(parameters), x)
            return jnp.mean(losses_of(loss, output, y, size)), aux

        (value, aux), grads = jax.value_and_grad(mean_loss, has_aux=True)(split.parameters)
        return joined(value, aux, model), split.gradients(grads), state

    def signals(key: Key, params: Params, state: Any, x: Any, y: Any) -> Signals:
        check_key("key", key)
        check_one(x)
        own = through_feedback(
            model, loss, None, params, x, y,
            varying=(), feedback=None, transport=lambda w, _: w, opened=True,
        )  # fmt: skip
        return Signals(own[2])

    return Rule(stateless(model), value_and_grad, model.trainable, signals)
