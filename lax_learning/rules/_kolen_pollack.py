"""Kolen-Pollack for any model: weights and feedback receive the same updates, and decay aligns them."""

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import ArrayLike, PyTree

from lax_learning._checks import check_not_negative
from lax_learning.models import Model
from lax_learning.rules._feedback import FeedbackInit, same_scale
from lax_learning.rules._feedback_rule import by_feedback, feedback_rule
from lax_learning.types import Key, Loss, Params, Rule, Where


def kolen_pollack(
    model: Model,
    loss: Loss,
    *,
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    decay: ArrayLike = 0.1,
    feedback_init: FeedbackInit = same_scale,
    where: Where = None,
) -> Rule:
    """Feedback alignment in which weights and feedback receive the same updates, both with decay.

    `g_w = g + decay w`, `g_feedback = g + decay feedback`, with the gradient `g` by feedback alignment.

    If gradient descent with rate eta moves both, `w - feedback` shrinks by a factor of `1 - eta decay` per
    step: pass a second instance of the parameters' optimiser as `optimizer`. With momentum, the difference
    follows the recursion of the momentum; with Adam, it shrinks at a different rate; clipping by a global
    norm breaks the law. Parameters without feedback (biases, the first layer) do not decay.

    Args:
      optimizer: updates the feedback at every call of `value_and_grad`. It receives the loss, as in
        `make_train`, but no `value_fn`.
      decay: decay of weights and feedback, >= 0; may be traced.
      feedback_init, where: as in `feedback_alignment`.

    Returns:
      The rule, with a `LearnedState`. The feedback changes only if you use the returned state.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import lax_learning as ll
      >>> model = ll.Model(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"])
      >>> rule = kolen_pollack(model, ll.squared_error, optimizer=optax.sgd(0.1), decay=0.5)
      >>> key, params, x = jax.random.key(0), {"a": jnp.eye(3), "b": jnp.eye(3)}, jnp.ones((5, 3))
      >>> state = rule.init(key, params, x)
      >>> loss, grads, state = jax.jit(rule.value_and_grad)(key, params, state, x, x)
      >>> jax.tree.map(jnp.shape, state.feedback)
      {'a': None, 'b': (3, 3)}

    References:
      Kolen, Pollack, Backpropagation without weight transport,
      https://doi.org/10.1109/ICNN.1994.374486, 1994.
      Akrout et al., Deep learning without weight transport, https://arxiv.org/abs/1904.05391, 2019.
    """
    check_not_negative("decay", decay)

    def decayed(b: Any, leaf: Any) -> Any:
        return jnp.asarray(decay, leaf.dtype) * leaf

    def learn(key: Key, feedback: PyTree, grads: Params, params: Params, x: Any) -> PyTree:
        return by_feedback(lambda b, g: (g + decayed(b, b)).astype(b.dtype), feedback, grads)

    def with_decay(feedback: PyTree, grads: Params, params: Params) -> Params:
        return by_feedback(lambda b, g, w: g + decayed(b, w), feedback, grads, params, alone=lambda g, w: g)

    return feedback_rule(
        model, loss, where, feedback_init, learn=learn, optimizer=optimizer, complete=with_decay
    )
