"""Direct feedback alignment: every hidden layer gets the output error through weights of its own."""

import math

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, variance_scaling
from jaxtyping import Array

from lax_learning._checks import check_callable, check_key
from lax_learning.layers import drawn
from lax_learning.networks import Network
from lax_learning.rules._delta import check_problem, checked_losses, delta_rule
from lax_learning.rules.feedback_alignment import feedback_of
from lax_learning.types import Key, Loss, Params, Rule, Signals

_KEEPS_VARIANCE = variance_scaling(1.0, "fan_in", "normal", in_axis=-1, out_axis=-2)


def direct_feedback_alignment(
    network: Network, loss: Loss, *, feedback_init: Initializer = _KEEPS_VARIANCE, scale: str = "gradient"
) -> Rule:
    """Sends the output error straight to every hidden layer through fixed random weights.

    `delta_l = (e feedback_l^T) phi'(z_l)`, `e = dL/dz_output`, `feedback_l [width_l, outputs]`,
    `dw_l = x_l^T delta_l / batch`

    The feedback weights stand beside the weights of their hidden layer in the params; their gradients
    are zero. A recurrent layer gets the error at every step, by weights of that step's own. Weight decay
    must be masked: see `forward_mask`.

    Args:
      network: the network.
      loss: per-example loss.
      feedback_init: initialiser of `feedback [width, outputs]`; by default the variance of the error is
        kept.
      scale: "gradient" or "tutorial", see `backprop`.

    Returns:
      The rule.

    Raises:
      TypeError: for a network, a loss or a `feedback_init` of another kind.
      ValueError: for an unknown scale.

    Example:
      >>> import jax
      >>> import lax_learning as ll
      >>> rule = ll.direct_feedback_alignment(ll.mlp((3, 6, 4, 2)), ll.squared_error)
      >>> [weights["feedback"].shape for weights in rule.init(jax.random.key(0))[:-1]]
      [(6, 2), (4, 2)]

    References:
      Nokland, Direct feedback alignment provides learning in deep neural networks,
      https://arxiv.org/abs/1609.01596, 2016.
    """

    check_problem(network, loss)
    check_callable("feedback_init", feedback_init, "an initialiser, such as jax.nn.initializers.normal()")

    def init(key: Key) -> Params:
        check_key("key", key)
        network_key, feedback_key = jax.random.split(key)
        *hidden, output = network.init(network_key)
        x = jax.ShapeDtypeStruct((1, *network.input_shape), output["w"].dtype)
        trace = jax.eval_shape(lambda x: network.forward((*hidden, output), x), x)
        num_outputs = math.prod(trace.pre_activations[-1].shape[1:])
        keys = jax.random.split(feedback_key, max(len(hidden), 1))
        return (
            *(
                {
                    **weights,
                    "feedback": drawn(
                        "feedback_init",
                        feedback_init,
                        k,
                        (math.prod(a.shape[1:]), num_outputs),
                        output["w"].dtype,
                    ),
                }
                for weights, a, k in zip(hidden, trace.activities, keys, strict=False)
            ),
            output,
        )

    def signals(key: Key, params: Params, x: Array, y: Array, weight: float) -> Signals:
        del key
        trace = network.forward(params, x)

        def losses_of(z: Array) -> Array:
            return checked_losses(loss, network.layers[-1].activation(z), y)

        losses, transpose = jax.vjp(losses_of, trace.pre_activations[-1])
        (error,) = transpose(jnp.full_like(losses, weight))
        flat_error = error.reshape(error.shape[0], -1)

        def hidden_delta(i: int) -> Array:
            a, derivative = jax.vjp(network.layers[i].activation, trace.pre_activations[i])
            feedback, expected = feedback_of(i, params[i]), (math.prod(a.shape[1:]), flat_error.shape[1])
            if feedback.shape != expected:
                raise ValueError(f"feedback: expected the shape {expected}, got {feedback.shape}")
            (delta,) = derivative((flat_error @ feedback.T).reshape(a.shape).astype(a.dtype))
            return delta

        hidden = tuple(hidden_delta(i) for i in range(len(network.layers) - 1))
        return Signals(losses, trace.inputs, (*hidden, error))

    return delta_rule(network, init, signals, scale)
