"""Direct feedback alignment for any model: the output error is sent directly to the data that sites read."""

from lax_learning.models import Model
from lax_learning.rules._direct import DirectInit, direct_rule, keeps_variance
from lax_learning.types import Loss, Rule, Where


def direct_feedback_alignment(
    model: Model, loss: Loss, *, feedback_init: DirectInit = keeps_variance, where: Where = None
) -> Rule:
    """Sends the output error through fixed random weights to every data value that sites read.

    `x_l` receives `e B_l^T` with `e = dL/doutput`, in place of the error that would come back through the
    product that reads it; everything else is differentiated as usual, `delta = (e B_l^T) phi'(z)`. The
    readout gets its exact gradient.

    Products that read the same value, such as query, key and value, share one B. If the output and `x_l`
    both have positions (the first axis within an example, or the steps of a scan, of equal length), the
    error is sent position by position; if only the output has positions, it is summed over them. B is shared
    over time steps; stacked layers have one B each. With several outputs, there is one B for each, and their
    signals add up, as do those of later layers in a residual stream.

    Args:
      feedback_init: `(key, like) -> feedback` of shape `[units, outputs]`, with leading axes for stacked
        layers; by default normal with variance `1 / outputs`.
      where: which parameters are trained; the gradients of the others are zero.

    Returns:
      The rule, with a `FeedbackState` whose feedback is a dict `"read/output" -> B`.

    Raises:
      ValueError: at trace time, for a model that couples examples, or a `cond` or a function with a custom
        derivative around several products.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import lax_learning as ll
      >>> model = ll.Model(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"])
      >>> rule = direct_feedback_alignment(model, ll.squared_error)
      >>> key, params, x = jax.random.key(0), {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}, jnp.ones((5, 3))
      >>> state = rule.init(key, params, x)
      >>> [feedback.shape for feedback in state.feedback.values()]
      [(4, 2)]
      >>> loss, grads, state = jax.jit(rule.value_and_grad)(key, params, state, x, jnp.ones((5, 2)))

    References:
      Nokland, Direct feedback alignment provides learning in deep neural networks,
      https://arxiv.org/abs/1609.01596, 2016.
    """
    return direct_rule(model, loss, feedback_init, where)
