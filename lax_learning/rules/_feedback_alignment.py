"""Feedback alignment for any model: errors pass through fixed random weights."""

from lax_learning.models import Model
from lax_learning.rules._feedback import FeedbackInit, same_scale
from lax_learning.rules._feedback_rule import feedback_rule
from lax_learning.types import Loss, Rule, Where


def feedback_alignment(
    model: Model, loss: Loss, *, feedback_init: FeedbackInit = same_scale, where: Where = None
) -> Rule:
    """Backprop through fixed random weights in place of the transposed forward weights.

    `delta_l = (delta_{l+1} feedback_{l+1}^T) phi'(z_l)`, `dw_l = x_l^T delta_l / batch`

    Every matrix product and convolution of a parameter with data that depend on parameters passes its error
    through the feedback, which is reshaped, normalised, sliced and shared like the parameter. Everything else
    (norms, gains, attention scores) passes its true derivative.

    Args:
      feedback_init: `(key, parameter) -> feedback`; by default normal with the standard deviation of the
        parameter.
      where: which parameters have feedback weights; errors pass through the others' true weights.

    Returns:
      The rule, with a `FeedbackState`. `state._replace(feedback=params)` gives backprop.

    Raises:
      ValueError: at trace time, for feedback whose shapes differ from params, or a `cond` or a function with
        a custom derivative around several products.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import lax_learning as ll
      >>> model = ll.Model(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"])
      >>> rule = feedback_alignment(model, ll.squared_error)
      >>> key, params, x = jax.random.key(0), {"a": jnp.eye(3), "b": jnp.eye(3)}, jnp.ones((5, 3))
      >>> state = rule.init(key, params, x)
      >>> jax.tree.map(jnp.shape, state.feedback)
      {'a': None, 'b': (3, 3)}
      >>> loss, grads, state = jax.jit(rule.value_and_grad)(key, params, state, x, x)

    References:
      Lillicrap et al., Random synaptic feedback weights support error backpropagation for deep learning,
      https://doi.org/10.1038/ncomms13276, 2016.
    """
    return feedback_rule(model, loss, where, feedback_init)
