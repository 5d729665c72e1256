"""Kolen-Pollack on any model: parameters and their feedback receive one update, and decay makes them meet."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import ArrayLike, PyTree

from lax_learning._checks import check_key, check_not_negative
from lax_learning._optimizers import with_loss_support
from lax_learning.models import Model, check_where
from lax_learning.rules._common import check_parts, delta_rule
from lax_learning.rules._feedback import (
    FeedbackInit,
    LearnedState,
    check_feedback_init,
    check_state,
    initial_feedback,
    same_scale,
    through_feedback,
)
from lax_learning.types import Key, Loss, Params, Rule, Signals, Where


def kolen_pollack(
    model: Model,
    loss: Loss,
    *,
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    decay: ArrayLike = 0.1,
    feedback_init: FeedbackInit = same_scale,
    where: Where = None,
) -> Rule:
    """Feedback alignment whose feedback learns as its parameters do.

    `g_w = g + decay w`, `g_feedback = g + decay feedback`, with the gradient `g` by feedback alignment.

    If one optimizer with learning rate eta moves both, `w - feedback` shrinks by `(1 - eta decay)` a step.
    Pass the optimizer of the parameters, made anew, as `optimizer`. The law needs an optimizer that is linear
    in the gradient and acts leaf by leaf: under SGD with momentum the difference follows the recursion of the
    momentum, under Adam it shrinks at a rate of its own, and clipping by a global norm breaks it. Parameters
    without feedback, such as biases and a first layer, do not decay.

    Args:
      model: any model.
      loss: per-example loss `(output, y) -> [batch]`.
      optimizer: moves the feedback at every call of `value_and_grad`; one that looks at the loss gets it, as
        in `make_train`, but no `value_fn`.
      decay: lambda, >= 0; may be traced.
      feedback_init: `(key, parameter) -> feedback`.
      where: which parameters have feedback; the others pass errors through themselves.

    Returns:
      The rule, with a `LearnedState`: the state that is returned holds the moved feedback. Calls whose
      state is not used, such as measurements, move nothing.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import lax_learning as ll
      >>> model = ll.Model(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"])
      >>> rule = kolen_pollack(model, ll.squared_error, optimizer=optax.sgd(0.1), decay=0.5)
      >>> key, params, x = jax.random.key(0), {"a": jnp.eye(3), "b": jnp.eye(3)}, jnp.ones((5, 3))
      >>> state = rule.init(key, params, x)
      >>> loss, grads, after = rule.value_and_grad(key, params, state, x, x)
      >>> b = params["b"] - 0.1 * grads["b"]
      >>> before = params["b"] - state.feedback["b"]
      >>> bool(jnp.allclose(b - after.feedback["b"], (1 - 0.1 * 0.5) * before, atol=1e-6))
      True

    References:
      Kolen, Pollack, Backpropagation without weight transport,
      https://doi.org/10.1109/ICNN.1994.374486, 1994.
      Akrout et al., Deep learning without weight transport, https://arxiv.org/abs/1904.05391, 2019.
    """
    check_parts(model, loss)
    with_loss = with_loss_support(optimizer)
    check_not_negative("decay", decay)
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

        def decayed(b: Any, g: Any, w: Any) -> Any:
            return g + jnp.asarray(decay, g.dtype) * w

        if isinstance(found, Signals):
            zeros = jax.tree.map(jnp.zeros_like, params)
            rest = _by_feedback(decayed, lambda g, w: g, feedback, zeros, params)
            return value, found._replace(rest=rest), state
        moves = _by_feedback(lambda b, g: decayed(b, g, b).astype(b.dtype), lambda g: None, feedback, found)
        updates, optimizer_state = with_loss.update(
            moves, state.optimizer_state, feedback, value=value[0] if model.has_aux else value, grad=moves
        )
        moved = LearnedState(optax.apply_updates(feedback, updates), optimizer_state)
        grads = _by_feedback(decayed, lambda g, w: g, feedback, found, params)
        return value, grads, moved

    return delta_rule(model, init, assign)


def _by_feedback(
    paired: Callable[..., Any], alone: Callable[..., Any], feedback: PyTree, *trees: PyTree
) -> PyTree:
    """`paired(feedback, *leaves)` of the parameters that have feedback, `alone(*leaves)` of the others."""
    return jax.tree.map(
        lambda b, *leaves: alone(*leaves) if b is None else paired(b, *leaves),
        feedback,
        *trees,
        is_leaf=lambda leaf: leaf is None,
    )
