"""Forward direct feedback on any model: direct feedback learns the Jacobian from one forward-mode pass."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lax_learning import noise
from lax_learning._checks import check_key
from lax_learning.models import Model
from lax_learning.rules._direct import DirectInit, Pass, direct_rule
from lax_learning.types import Key, Loss, Rule, Where


def no_feedback(key: Key, like: jax.ShapeDtypeStruct) -> Array:
    """Feedback of zeros, which forward direct feedback learns from."""
    return jnp.zeros(like.shape, like.dtype)


def forward_direct_feedback(
    model: Model, loss: Loss, *, optimizer: Any, feedback_init: DirectInit = no_feedback, where: Where = None
) -> Rule:
    """Direct feedback that averages directional derivatives into the Jacobian of the layers above.

    `delta_l = (e B_l^T) phi'(z_l)`, `g_B = B_l - mean_batch p_l^T (J p)`

    with unit noise `p_l` on all hidden activities at once, in one pass of forward-mode differentiation, and
    `J p` the derivative of the output along it. `E[p_l^T (J p)] = (dy/da_l)^T`: under SGD with rate beta the
    feedback is a running mean, `B_l <- (1 - beta) B_l + beta p_l^T (J p)`, and its expectation the transposed
    Jacobian. `e B_l^T` is then all of the error of an activity: errors that would come back past a product,
    through a residual connection for example, are left out. The variance of a sample grows with the number of
    units, so beta has to be small (0.01), and the first updates, from feedback of zeros, train the read-out
    alone. Positions and steps that share feedback learn the mean of their Jacobians.

    Args:
      model: any model that forward mode differentiates.
      optimizer: moves the feedback at every call of `value_and_grad`; `optax.sgd(beta)` for the form above.
      feedback_init, where: as of `direct_feedback_alignment`; by default feedback is zero.

    Returns:
      The rule, with a `LearnedState`; feedback as of `direct_feedback_alignment`. Calls whose state is not
      used, such as measurements, move nothing.

    Example:
      >>> import optax
      >>> import lax_learning as ll
      >>> model = ll.Model(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"])
      >>> rule = forward_direct_feedback(model, ll.squared_error, optimizer=optax.sgd(0.01))
      >>> key, params, x = jax.random.key(0), {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}, jnp.ones((5, 3))
      >>> state = rule.init(key, params, x)
      >>> loss, grads, state = rule.value_and_grad(key, params, state, x, jnp.ones((5, 2)))
      >>> [feedback.shape for feedback in state.feedback.values()]
      [(4, 2)]

    References:
      Bacho, Chu, Low-variance forward gradients using direct feedback alignment and momentum,
      https://arxiv.org/abs/2212.07282, 2024.
    """

    def learn(key: Key, feedback: dict[str, Array], passed: Pass) -> dict[str, Array]:
        check_key("key", key)
        used = {passed.ways[name][0] for name in feedback}
        drawn = noise.normal(key, {index: passed.reads[index] for index in sorted(used)})
        sampled = passed.paired(feedback, passed.along(drawn), drawn)
        examples = {name: len(drawn[passed.ways[name][0]]) for name in feedback}
        return {
            name: b - sampled[name] / (examples[name] * passed.ways[name][2].shared_by)
            for name, b in feedback.items()
        }

    return direct_rule(model, loss, feedback_init, where, learn=learn, optimizer=optimizer, total=True)
