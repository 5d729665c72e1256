"""Direct Kolen-Pollack for any model: direct feedback learns from the activities and the output error."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from lax_learning._checks import check_not_negative
from lax_learning.models import Model
from lax_learning.rules._direct import ByName, DirectInit, Pass, direct_rule, keeps_variance
from lax_learning.types import Key, Loss, Rule, Where


def direct_kolen_pollack(
    model: Model,
    loss: Loss,
    *,
    optimizer: Any,
    decay: ArrayLike = 1e-6,
    feedback_init: DirectInit = keeps_variance,
    where: Where = None,
) -> Rule:
    """Direct feedback alignment whose feedback learns from products of activities and output errors.

    `delta_l = (e B_l^T) phi'(z_l)`, `g_B = a_l^T e / batch + decay B_l`

    The feedback of a layer receives the gradient of a linear readout of that layer. For the last hidden
    layer, this is the model's own readout, so with the same optimiser and decay the two converge, as in
    Kolen-Pollack. The decay applies only to the feedback: add the same decay to the parameters' optimiser
    (`optax.add_decayed_weights`).

    Args:
      optimizer: updates the feedback at every call of `value_and_grad`.
      decay: decay of the feedback, >= 0; may be traced. The public code recommends 1e-6.
      feedback_init, where: as in `direct_feedback_alignment`.

    Returns:
      The rule, with a `LearnedState`; feedback as in `direct_feedback_alignment`. The feedback changes only
      if you use the returned state.

    Example:
      >>> import optax
      >>> import lax_learning as ll
      >>> model = ll.Model(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"])
      >>> rule = direct_kolen_pollack(model, ll.squared_error, optimizer=optax.sgd(0.1))
      >>> key, params, x = jax.random.key(0), {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}, jnp.ones((5, 3))
      >>> state = rule.init(key, params, x)
      >>> loss, grads, state = jax.jit(rule.value_and_grad)(key, params, state, x, jnp.ones((5, 2)))
      >>> [feedback.shape for feedback in state.feedback.values()]
      [(4, 2)]

    References:
      Webster, Choi, Ahn, Learning the connections in direct feedback alignment,
      https://openreview.net/forum?id=zgGmAx9ZcY, 2020.
    """
    check_not_negative("decay", decay)

    def learn(key: Key, feedback: ByName, passed: Pass, sent: ByName) -> ByName:
        taught = passed.paired(feedback, sent, passed.reads)
        return jax.tree.map(lambda g, b: g + jnp.asarray(decay, g.dtype) * b, taught, feedback)

    return direct_rule(model, loss, feedback_init, where, learn=learn, optimizer=optimizer)
