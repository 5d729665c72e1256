"""Feedback alignment on any model whose feedback learns."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from lax_learning._checks import check_key
from lax_learning._optimizers import with_loss_support
from lax_learning.models import Model, check_where
from lax_learning.rules._common import check_parts, delta_rule
from lax_learning.rules._feedback import (
    FeedbackInit,
    LearnedState,
    check_feedback_init,
    check_state,
    initial_feedback,
    through_feedback,
)
from lax_learning.types import Key, Loss, Params, Rule, Signals, Where

Learn = Callable[[Key, PyTree, Params, Params, Any], PyTree]
"""`(key, feedback, grads, params, x) -> gradient of the feedback`, None where no error passes."""


def learned_feedback_rule(
    model: Model,
    loss: Loss,
    where: Where,
    feedback_init: FeedbackInit,
    *,
    learn: Learn,
    optimizer: Any,
    complete: Callable[[PyTree, Params, Params], Params] = lambda feedback, grads, params: grads,
) -> Rule:
    """Returns feedback alignment whose feedback is moved by an optimizer at every call.

    Args:
      model, loss, where, feedback_init: of the rule.
      learn: how the feedback learns.
      optimizer: that moves the feedback.
      complete: `(feedback, grads, params) -> grads`, which adds what does not depend on data.
    """
    check_parts(model, loss)
    with_loss = with_loss_support(optimizer)
    check_feedback_init(feedback_init)
    check_where("where", where)

    def init(key: Key, params: Params, x: Any) -> LearnedState:
        feedback = initial_feedback(model, where, feedback_init, key, params, x)
        return LearnedState(feedback, with_loss.init(feedback))

    def assign(
        key: Key, params: Params, state: LearnedState, x: Any, y: Any, *, opened: bool = False
    ) -> tuple[Any, Params | Signals, LearnedState]:
        check_state(state, LearnedState)
        check_key("key", key)
        feedback = state.feedback
        value, found = through_feedback(
            model, loss, where, params, x, y, varying=state, feedback=lambda *_: feedback, opened=opened
        )
        if isinstance(found, Signals):
            rest = complete(feedback, jax.tree.map(jnp.zeros_like, params), params)
            return value, found._replace(rest=rest), state
        moves = learn(key, feedback, found, params, x)
        updates, optimizer_state = with_loss.update(
            moves, state.optimizer_state, feedback, value=value[0] if model.has_aux else value, grad=moves
        )
        moved = LearnedState(optax.apply_updates(feedback, updates), optimizer_state)
        return value, complete(feedback, found, params), moved

    return delta_rule(model, init, assign)


def by_feedback(
    paired: Callable[..., Any], feedback: PyTree, *trees: PyTree, alone: Callable[..., Any] | None = None
) -> PyTree:
    """`paired(feedback, *leaves)` where there is feedback, else `alone(*leaves)`, by default None."""

    def of(b: Any, *leaves: Any) -> Any:
        if b is not None:
            return paired(b, *leaves)
        return None if alone is None else alone(*leaves)

    return jax.tree.map(of, feedback, *trees, is_leaf=lambda leaf: leaf is None)
