"""Forward direct feedback for any model: direct feedback learns the Jacobian from a forward-mode pass."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lax_learning import noise
from lax_learning._sites._equations import shard_as
from lax_learning.models import Model
from lax_learning.rules._direct import ByName, DirectInit, Pass, direct_rule
from lax_learning.types import Key, Loss, Rule, Where


def no_feedback(key: Key, like: jax.ShapeDtypeStruct) -> Array:
    """Returns zeros, from which forward direct feedback starts to learn."""
    return jnp.zeros(like.shape, like.dtype)


def forward_direct_feedback(
    model: Model, loss: Loss, *, optimizer: Any, feedback_init: DirectInit = no_feedback, where: Where = None
) -> Rule:
    """Direct feedback that estimates the Jacobian of the layers above by averaging directional derivatives.

    `delta_l = (e B_l^T) phi'(z_l)`, `g_B = B_l - mean_batch p_l^T (J p)`

    `p_l` is unit noise on all hidden activities at once, and `J p` the derivative of the output along it,
    from a single forward-mode pass. `E[p_l^T (J p)] = (dy/da_l)^T`, so under SGD with rate beta the feedback
    is a running mean that tracks the transposed Jacobian; positions and steps that share feedback learn the
    mean of theirs. `e B_l^T` is then the whole error of an activity, so errors that would arrive by a path
    around products, for example a residual connection, are left out. The variance of a sample grows with the
    number of units, so beta has to be small (0.01).

    Args:
      model: any model that supports forward-mode differentiation.
      optimizer: updates the feedback at every call of `value_and_grad`: `optax.sgd(beta)` for the form above.
      feedback_init, where: as in `direct_feedback_alignment`; by default, feedback is zero, so that the first
        updates train only the readout.

    Returns:
      The rule, with a `LearnedState`; feedback as in `direct_feedback_alignment`. The feedback changes only
      if you use the returned state.

    Example:
      >>> import optax
      >>> import lax_learning as ll
      >>> model = ll.Model(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"])
      >>> rule = forward_direct_feedback(model, ll.squared_error, optimizer=optax.sgd(0.01))
      >>> key, params, x = jax.random.key(0), {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}, jnp.ones((5, 3))
      >>> state = rule.init(key, params, x)
      >>> loss, grads, state = jax.jit(rule.value_and_grad)(key, params, state, x, jnp.ones((5, 2)))
      >>> [feedback.shape for feedback in state.feedback.values()]
      [(4, 2)]

    References:
      Bacho, Chu, Low-variance forward gradients using direct feedback alignment and momentum,
      https://arxiv.org/abs/2212.07282, 2024.
    """

    def learn(key: Key, feedback: ByName, passed: Pass, sent: ByName) -> ByName:
        used = sorted({route.read.index for route in passed.routes.values()})
        drawn = noise.normal(key, {index: passed.reads[index] for index in used})
        drawn = {index: shard_as(n, passed.reads[index]) for index, n in drawn.items()}
        sampled = passed.paired(feedback, passed.everywhere(passed.along(drawn)), drawn)

        def gradient(name: str, b: Array) -> Array:
            route = passed.routes[name]
            return b - sampled[name] / (len(drawn[route.read.index]) * route.shared_by)

        return {name: gradient(name, b) for name, b in feedback.items()}

    return direct_rule(model, loss, feedback_init, where, learn=learn, optimizer=optimizer, total=True)
