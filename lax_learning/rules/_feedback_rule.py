"""Feedback alignment for any model, with feedback that is fixed, redrawn at every call, or learned."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from lax_learning._checks import check_key
from lax_learning._optimizers import with_loss_support
from lax_learning.models import Model, check_where
from lax_learning.rules import _feedback as feedbacks
from lax_learning.rules._common import Result, Sites, check_parts, delta_rule, stateless
from lax_learning.rules._feedback import FeedbackInit, FeedbackState, LearnedState, Operand
from lax_learning.types import Key, Loss, Params, Rule, Signals, Where


def feedback_rule(
    model: Model,
    loss: Loss,
    where: Where,
    feedback_init: FeedbackInit,
    *,
    source: Callable[[Key, Any, Sites], PyTree] | None = None,
    transport: Callable[[Operand, Operand], Operand] = lambda w, feedback: feedback,
    learn: Callable[[Key, PyTree, Params, Params, Any], PyTree] | None = None,
    optimizer: Any = None,
    complete: Callable[[PyTree, Params, Params], Params] = lambda feedback, grads, params: grads,
) -> Rule:
    """Returns feedback alignment with the given kind of feedback.

    Args:
      source: `(key, state, sites) -> feedback`, or `WEIGHTS`, for a rule without state; by default, feedback
        is the state.
      transport: as in `through_feedback`.
      learn, optimizer: `(key, feedback, grads, params, x) -> gradient of the feedback`, None where no error
        passes, and the optimiser that updates the feedback.
      complete: `(feedback, grads, params) -> grads`, which adds terms that do not depend on data.
    """
    check_parts(model, loss)
    feedbacks.check_feedback_init(feedback_init)
    check_where("where", where)
    mover = None if learn is None else with_loss_support(optimizer)

    def init(key: Key, params: Params, x: Any) -> FeedbackState | LearnedState:
        feedback = feedbacks.initial_feedback(model, where, feedback_init, key, params, x)
        return FeedbackState(feedback) if mover is None else LearnedState(feedback, mover.init(feedback))

    def value_and_grad(
        key: Key, params: Params, state: Any, x: Any, y: Any, *, opened: bool = False
    ) -> Result:
        check_key("key", key)
        if source is None:
            feedbacks.check_state(state, FeedbackState if mover is None else LearnedState)
        value, found = feedbacks.through_feedback(
            model, loss, where, params, x, y, transport=transport, opened=opened,
            varying=state if source is None else (key, state),
            feedback=lambda sites: state.feedback if source is None else source(key, state, sites),
        )  # fmt: skip
        if learn is None or mover is None:
            return value, found, state
        if isinstance(found, Signals):
            rest = complete(state.feedback, jax.tree.map(jnp.zeros_like, params), params)
            return value, found._replace(rest=rest), state
        moves = learn(key, state.feedback, found, params, x)
        after = feedbacks.moved_feedback(mover, state, moves, value[0] if model.has_aux else value)
        return value, complete(state.feedback, found, params), after

    return delta_rule(model, init if source is None else stateless(model), value_and_grad)


def by_feedback(
    paired: Callable[..., Any], feedback: PyTree, *trees: PyTree, alone: Callable[..., Any] | None = None
) -> PyTree:
    """Maps `paired(feedback, *leaves)` over leaves with feedback, and `alone` (or None) over the others."""

    def of(b: Any, *leaves: Any) -> Any:
        if b is not None:
            return paired(b, *leaves)
        return None if alone is None else alone(*leaves)

    return jax.tree.map(of, feedback, *trees, is_leaf=lambda leaf: leaf is None)
