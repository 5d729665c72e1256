"""Rules that apply an estimator for plain loss functions to the loss of a model."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lax_learning._checks import check_key
from lax_learning._precision import widened
from lax_learning._sites._batch import as_batch
from lax_learning.models import Model, Split
from lax_learning.rules._common import check_parts, check_wide, losses_of, select_paths, stateless
from lax_learning.types import Estimator, Key, Loss, Params, Rule, Where


def estimator_rule(
    make_estimator: Callable[..., Estimator],
    model: Model,
    loss: Loss,
    where: Where = None,
    *,
    differences: bool = False,
    check: Callable[[list[Array]], None] = lambda parameters: None,
    **options: Any,
) -> Rule:
    """Returns a rule without state that applies an estimator to the loss of a model.

    Keyword arguments of its `value_and_grad` are passed to the estimator.

    Args:
      make_estimator: `(loss_fn, *, has_aux, **options) -> estimator`.
      model, loss: arguments of the rule.
      where: which parameters are trained; the gradients of the others are zero.
      differences: whether the estimator takes differences of losses, which half precision rounds away.
      check: function that raises for unsuitable parameters.
    """
    check_parts(model, loss)

    def losses(moved: dict[str, Array], split: Split, x: Any, y: Any, size: int) -> Any:
        paths = zip(split.parameter_paths, split.parameters, strict=True)
        output, aux = model(split.merge([moved.get(path, leaf) for path, leaf in paths]), x)
        each = losses_of(loss, output, y, size)
        return (each, aux) if model.has_aux else each

    estimate = make_estimator(losses, has_aux=model.has_aux, **options)

    def value_and_grad(
        key: Key, params: Params, state: Any, x: Any, y: Any, **arguments: Any
    ) -> tuple[Any, Params, Any]:
        check_key("key", key)
        x, size = as_batch(x)
        split = Split(model, params)
        check(split.parameters)
        # Half precision would round differences away: the passes run in float32, on the same parameters.
        params = split.merge(split.parameters)
        wide, wide_x = widened((params, x))
        if differences:
            check_wide(model, wide, wide_x)
        wide_split = Split(model, wide)
        own = dict(zip(split.parameter_paths, wide_split.parameters, strict=True))
        selected = {path: own[path] for path in select_paths(where, split)}
        value, grads = estimate(key, selected, wide_split, wide_x, y, size, **arguments)
        if model.has_aux:
            _, like = jax.eval_shape(model, params, x)
            value = value[0], jax.tree.map(_narrowed, value[1], like)
        every = [grads.get(path, jnp.zeros_like(leaf)) for path, leaf in own.items()]
        every = [g.astype(w.dtype) for g, w in zip(every, split.parameters, strict=True)]
        return value, split.gradients(every), state

    return Rule(stateless(model), value_and_grad, model.trainable)


def _narrowed(leaf: Any, like: jax.ShapeDtypeStruct) -> Any:
    return leaf if jnp.result_type(leaf) == like.dtype else leaf.astype(like.dtype)
