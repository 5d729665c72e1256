"""Sign symmetry for any model: the weights for errors share only the signs of the forward weights."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree

from lax_learning._checks import check_choice, check_positive
from lax_learning.models import Model
from lax_learning.rules._common import Sites
from lax_learning.rules._feedback import WEIGHTS, FeedbackInit, Operand, draw_feedback, same_scale
from lax_learning.rules._feedback_rule import feedback_rule
from lax_learning.types import Key, Loss, Rule, Where


def sign_symmetry(
    model: Model,
    loss: Loss,
    *,
    magnitude: Literal["unit", "fixed", "redrawn"] = "unit",
    gain: ArrayLike = 1.0,
    feedback_init: FeedbackInit = same_scale,
    where: Where = None,
) -> Rule:
    """Backprop through `gain |B| sign(w)` in place of the weights `w`.

    `delta_l = (delta_{l+1} (gain |B_{l+1}| sign(w_{l+1}))^T) phi'(z_l)`, with the sign of the operand of each
    product, for example of a weight after its normalisation.

    Args:
      magnitude: "unit": `|B| = 1` (uniform sign-concordant feedback, uSF); "fixed": `|B|` from
        `feedback_init`, drawn once (frSF); "redrawn": the same, redrawn at every call (brSF).
      gain: factor on the magnitudes, > 0; may be traced. With unit magnitudes, a gain of the size of a
        typical weight keeps the updates of different layers in proportion.
      feedback_init: `(key, parameter) -> feedback`, of which only the magnitudes are used.
      where: which parameters have feedback weights; errors pass through the others' true weights.

    Returns:
      The rule. With "fixed" magnitudes its state is a `FeedbackState`, and
      `state._replace(feedback=params)` gives backprop; otherwise the state is empty.

    Example:
      >>> import lax_learning as ll
      >>> model = ll.Model(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"])
      >>> rule = sign_symmetry(model, ll.squared_error, gain=0.1)
      >>> key, params, x = jax.random.key(0), {"a": jnp.eye(3), "b": jnp.eye(3)}, jnp.ones((5, 3))
      >>> loss, grads, state = jax.jit(rule.value_and_grad)(key, params, rule.init(key, params, x), x, x)
      >>> grads["a"].shape
      (3, 3)

    References:
      Liao, Leibo, Poggio, How important is weight symmetry in backpropagation?,
      https://arxiv.org/abs/1510.05067, 2016.
      Moskovitz, Litwin-Kumar, Abbott, Feedback alignment in deep convolutional networks,
      https://arxiv.org/abs/1812.06488, 2018.
    """
    check_choice("magnitude", magnitude, ("unit", "fixed", "redrawn"))
    check_positive("gain", gain)

    def signed(w: Operand, feedback: Operand) -> Operand:
        def of(w: Array, b: Array) -> Array:
            size = jnp.ones_like(w) if magnitude == "unit" else jnp.abs(b)
            return jnp.asarray(gain, w.dtype) * size * jnp.sign(w)

        return jax.tree.map(of, w, feedback)

    def drawn(key: Key, state: Any, sites: Sites) -> PyTree:
        return draw_feedback(feedback_init, key, sites)

    source = {"unit": lambda *_: WEIGHTS, "fixed": None, "redrawn": drawn}[magnitude]
    return feedback_rule(model, loss, where, feedback_init, source=source, transport=signed)
