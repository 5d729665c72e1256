"""Feedback alignment: the error travels back through fixed random weights."""

from collections.abc import Callable
from functools import partial

from jaxtyping import Array

from lax_learning._checks import check_layers
from lax_learning.feedback import init_feedback, with_feedback
from lax_learning.layers import Layer
from lax_learning.networks import Network, plain_product
from lax_learning.rules._delta import backward_signals, delta_rule
from lax_learning.types import Key, Loss, Params, Rule, Signals, Weights


def feedback_alignment(network: Network, loss: Loss, *, scale: str = "gradient") -> Rule:
    """Backprop with independent, fixed weights in place of the transposed ones.

    `delta_l = (delta_{l+1} feedback_{l+1}^T) phi'(z_l)`, `dw_l = x_l^T delta_l / batch`

    The feedback weights of every layer but the first are drawn as the layer's `w` and stand beside it in
    the params; their gradients are zero. Weight decay must be masked: see `forward_mask`.

    Args:
      network: the network.
      loss: per-example loss.
      scale: "gradient" or "tutorial", see `backprop`.

    Returns:
      The rule.

    Raises:
      ValueError: for an unknown scale.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import lax_learning as ll
      >>> rule = ll.feedback_alignment(ll.mlp((3, 4, 2)), ll.squared_error)
      >>> params = rule.init(jax.random.key(0))
      >>> params[1]["feedback"].shape
      (4, 2)

    References:
      Lillicrap et al., Random synaptic feedback weights support error backpropagation for deep
      learning, https://doi.org/10.1038/ncomms13276, 2016.
    """
    return feedback_rule(
        network, loss, partial(init_feedback, network), lambda key, params: stored_feedback(params), scale
    )


def stored_feedback(params: Params) -> tuple[Array, ...]:
    """The feedback weights that stand in the params, of every layer but the first."""
    return tuple(feedback_of(i, weights) for i, weights in enumerate(params) if i > 0)


def feedback_of(i: int, weights: Weights) -> Array:
    """The feedback weights of layer `i`, or an error that says that there are none."""
    if "feedback" not in weights:
        raise ValueError(f"params[{i}]: expected the entry 'feedback', see init, got {sorted(weights)}")
    return weights["feedback"]


def feedback_rule(
    network: Network,
    loss: Loss,
    init: Callable[[Key], Params],
    feedback: Callable[[Key, Params], tuple[Array, ...]],
    scale: str,
) -> Rule:
    """A rule that differs from backprop in the weights that carry the error back.

    `feedback(key, params)` gives them for every layer but the first, which passes no error on.
    """

    def signals(key: Key, params: Params, x: Array, y: Array, weight: float) -> Signals:
        check_layers("params", params, len(network.layers))
        routed = (
            params[0],
            *(
                {**weights, "feedback": each}
                for weights, each in zip(params[1:], feedback(key, params), strict=True)
            ),
        )
        return backward_signals(network, loss, routed, x, y, weight, _feedback_product)

    return delta_rule(network, init, signals, scale)


def _feedback_product(layer: Layer, weights: Weights, x: Array) -> Array:
    if "feedback" not in weights:
        return plain_product(layer, weights, x)
    return with_feedback(layer.linear)(weights["w"], weights["feedback"], x)
