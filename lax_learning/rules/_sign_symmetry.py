"""Sign-symmetric feedback on any model: the weights of the errors share only their signs with the model's."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from lax_learning._checks import check_choice, check_key, check_positive
from lax_learning.models import Model, check_where
from lax_learning.rules._common import check_parts, delta_rule, stateless
from lax_learning.rules._feedback import (
    FeedbackInit,
    FeedbackState,
    Operand,
    check_feedback_init,
    check_state,
    draw_feedback,
    initial_feedback,
    same_scale,
    through_feedback,
)
from lax_learning.types import Key, Loss, Params, Rule, Signals, Where


def sign_symmetry(
    model: Model,
    loss: Loss,
    *,
    magnitude: str = "unit",
    gain: ArrayLike = 1.0,
    feedback_init: FeedbackInit = same_scale,
    where: Where = None,
) -> Rule:
    """Backprop through `gain |B| sign(w)` in place of the weights `w`.

    `delta_l = (delta_{l+1} (gain |B_{l+1}| sign(w_{l+1}))^T) phi'(z_l)`

    The sign is that of the operand of each product: of a weight after its normalisation, for example.

    Variants:
      "unit": `|B| = 1` (uniform sign-concordant feedback, uSF).
      "fixed": `|B|` from `feedback_init`, drawn once (frSF).
      "redrawn": `|B|` from `feedback_init`, drawn anew at every call (brSF).

    Args:
      model: any model.
      loss: per-example loss `(output, y) -> [batch]`.
      magnitude: "unit", "fixed" or "redrawn".
      gain: factor on the magnitudes, > 0; may be traced. With unit magnitudes the size of a typical weight
        keeps the steps of the layers in proportion.
      feedback_init: `(key, parameter) -> feedback`, whose magnitudes are used.
      where: which parameters have feedback; the others pass errors through themselves.

    Returns:
      The rule. With "fixed" magnitudes its state is a `FeedbackState`, and
      `state._replace(feedback=params)` gives backprop; otherwise the state is empty.

    Example:
      >>> import lax_learning as ll
      >>> model = ll.Model(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"])
      >>> rule = sign_symmetry(model, ll.squared_error, gain=0.1)
      >>> key, params, x = jax.random.key(0), {"a": jnp.eye(3), "b": jnp.eye(3)}, jnp.ones((5, 3))
      >>> loss, grads, state = rule.value_and_grad(key, params, rule.init(key, params, x), x, x)
      >>> grads["a"].shape
      (3, 3)

    References:
      Liao, Leibo, Poggio, How important is weight symmetry in backpropagation?,
      https://arxiv.org/abs/1510.05067, 2016.
      Moskovitz, Litwin-Kumar, Abbott, Feedback alignment in deep convolutional networks,
      https://arxiv.org/abs/1812.06488, 2018.
    """
    check_parts(model, loss)
    check_choice("magnitude", magnitude, ("unit", "fixed", "redrawn"))
    check_positive("gain", gain)
    check_feedback_init(feedback_init)
    check_where("where", where)

    def signed(w: Operand, size: Callable[[Any, Any], Any], feedback: Operand) -> Operand:
        return jax.tree.map(lambda w, b: jnp.asarray(gain, w.dtype) * size(w, b) * jnp.sign(w), w, feedback)

    def unit(w: Operand, feedback: Operand) -> Operand:
        return signed(w, lambda w, b: jnp.ones_like(w), feedback)

    def drawn(w: Operand, feedback: Operand) -> Operand:
        return signed(w, lambda w, b: jnp.abs(b), feedback)

    def init(key: Key, params: Params, x: Any) -> FeedbackState:
        return FeedbackState(initial_feedback(model, where, feedback_init, key, params, x))

    def assign(
        key: Key, params: Params, state: Any, x: Any, y: Any, *, opened: bool = False
    ) -> tuple[Any, Params | Signals, Any]:
        check_key("key", key)
        if magnitude == "fixed":
            check_state(state)
        feedback = {
            "unit": None,
            "fixed": lambda program, sites: state.feedback,
            "redrawn": lambda program, sites: draw_feedback(feedback_init, key, program, sites),
        }[magnitude]
        transport = unit if magnitude == "unit" else drawn
        value, found = through_feedback(
            model, loss, where, params, x, y,
            varying=(key, state), feedback=feedback, transport=transport, opened=opened,
        )  # fmt: skip
        return value, found, state

    return delta_rule(model, init if magnitude == "fixed" else stateless(model), assign)
