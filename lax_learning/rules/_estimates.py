"""Rules that apply an estimator for plain loss functions to the loss of a model."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lax_learning._checks import check_key, check_resolved
from lax_learning._precision import widened
from lax_learning._sites._batch import as_batch
from lax_learning.models import Model, Split, check_where
from lax_learning.rules import _common as common
from lax_learning.rules._common import Result
from lax_learning.types import Estimator, Key, Loss, Params, Rule, Where


def estimator_rule(
    make_estimator: Callable[..., Estimator],
    model: Model,
    loss: Loss,
    where: Where = None,
    *,
    differences: bool = False,
    **options: Any,
) -> Rule:
    """Returns a rule without state that applies `make_estimator(loss_fn, has_aux=..., **options)`.

    `differences` says that the estimator takes differences of losses, which half precision would round away.
    Keyword arguments of the rule's `value_and_grad` are passed to the estimator.
    """
    common.check_parts(model, loss)
    check_where("where", where)

    def losses(moved: dict[str, Array], split: Split, x: Any, y: Any, size: int) -> Any:
        output, aux = model(split.merge([moved[path] for path in split.parameter_paths]), x)
        return common.joined(common.losses_of(loss, output, y, size), aux, model)

    estimate = make_estimator(losses, has_aux=model.has_aux, **options)

    def value_and_grad(key: Key, params: Params, state: Any, x: Any, y: Any, **arguments: Any) -> Result:
        check_key("key", key)
        x, size = as_batch(x)
        chosen = common.select_paths(where, Split(model, params))
        selected = replace(model, trainable=lambda path: path in chosen)
        split = Split(selected, params)
        if "sigma" in options:
            check_resolved("sigma", options["sigma"], *(leaf.dtype for leaf in split.parameters))
        # The passes run in float32, on the same parameters.
        params = split.merge(split.parameters)
        wide, wide_x = widened((params, x))
        if differences:
            common.check_wide(model, wide, wide_x)
        wide_split = Split(selected, wide)
        own = dict(zip(chosen, wide_split.parameters, strict=True))
        value, grads = estimate(key, own, wide_split, wide_x, y, size, **arguments)
        if model.has_aux:
            _, like = jax.eval_shape(model, params, x)
            value = value[0], jax.tree.map(_narrowed, value[1], like)
        found = [grads[path].astype(w.dtype) for path, w in zip(chosen, split.parameters, strict=True)]
        return value, split.gradients(found), state

    return Rule(common.stateless(model), value_and_grad, model.trainable)


def _narrowed(leaf: Any, like: jax.ShapeDtypeStruct) -> Any:
    return leaf if jnp.result_type(leaf) == like.dtype else leaf.astype(like.dtype)
