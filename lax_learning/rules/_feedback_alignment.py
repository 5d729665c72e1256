"""Feedback alignment on any model: errors pass through fixed random weights."""

from typing import Any

from lax_learning._checks import check_key
from lax_learning.models import Model, check_where
from lax_learning.rules._common import check_parts, delta_rule
from lax_learning.rules._feedback import (
    FeedbackInit,
    FeedbackState,
    check_feedback_init,
    check_state,
    initial_feedback,
    same_scale,
    through_feedback,
)
from lax_learning.types import Key, Loss, Params, Rule, Signals, Where


def feedback_alignment(
    model: Model, loss: Loss, *, feedback_init: FeedbackInit = same_scale, where: Where = None
) -> Rule:
    """Backprop with independent, fixed weights in place of the transposed ones.

    `delta_l = (delta_{l+1} feedback_{l+1}^T) phi'(z_l)`, `dw_l = x_l^T delta_l / batch`

    Every matrix product and convolution of a parameter with data that depend on parameters passes its error
    through the feedback, reshaped, normalised, sliced and shared as the parameter is. All else (norms, gains,
    attention scores) passes its true derivative.

    Args:
      model: any model.
      loss: per-example loss `(output, y) -> [batch]`.
      feedback_init: `(key, parameter) -> feedback`; by default normal with the standard deviation of the
        parameter.
      where: which parameters have feedback of their own; the others pass errors through themselves.

    Returns:
      The rule, with a `FeedbackState`. `state._replace(feedback=params)` gives backprop.

    Raises:
      ValueError: at trace time, for feedback of other shapes than params, or a `cond` or a function with a
        derivative of its own around several products.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import lax_learning as ll
      >>> model = ll.Model(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"])
      >>> rule = feedback_alignment(model, ll.squared_error)
      >>> key, params, x = jax.random.key(0), {"a": jnp.eye(3), "b": jnp.eye(3)}, jnp.ones((5, 3))
      >>> state = rule.init(key, params, x)
      >>> jax.tree.map(jnp.shape, state.feedback)
      {'a': None, 'b': (3, 3)}
      >>> loss, grads, state = rule.value_and_grad(key, params, state, x, x)

    References:
      Lillicrap et al., Random synaptic feedback weights support error backpropagation for deep learning,
      https://doi.org/10.1038/ncomms13276, 2016.
    """
    check_parts(model, loss)
    check_feedback_init(feedback_init)
    check_where("where", where)

    def init(key: Key, params: Params, x: Any) -> FeedbackState:
        return FeedbackState(initial_feedback(model, where, feedback_init, key, params, x))

    def assign(
        key: Key, params: Params, state: FeedbackState, x: Any, y: Any, *, opened: bool = False
    ) -> tuple[Any, Params | Signals, FeedbackState]:
        check_state(state)
        check_key("key", key)
        value, found = through_feedback(
            model, loss, where, params, x, y, varying=state, feedback=lambda *_: state.feedback, opened=opened
        )
        return value, found, state

    return delta_rule(model, init, assign)
