"""Feedback alignment: the error travels back through fixed random weights."""

from collections.abc import Callable
from functools import partial

from jaxtyping import Array

from lax_learning.feedback import init_feedback, with_feedback
from lax_learning.layers import Layer
from lax_learning.networks import Network, plain_product
from lax_learning.rules._delta import backward_signals, check_problem, delta_rule
from lax_learning.types import Key, Loss, Params, Rule, Signals, Weights


def feedback_alignment(network: Network, loss: Loss, *, scale: str = "gradient") -> Rule:
    """Backprop with independent, fixed weights in place of the transposed ones.

    `delta_l = (delta_{l+1} feedback_{l+1}^T) phi'(z_l)`, `dw_l = x_l^T delta_l / batch`

    The feedback weights of every layer but the first are drawn as the layer's `w` and stand beside it in
    the params; their gradients are zero. A recurrent layer has them even where it is the first: they carry
    its error back in time. Weight decay must be masked: see `forward_mask`.

    Args:
      network: the network.
      loss: per-example loss.
      scale: "gradient" or "tutorial", see `backprop`.

    Returns:
      The rule.

    Raises:
      TypeError: for a network or a loss of another kind.
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
        network,
        loss,
        partial(init_feedback, network),
        lambda key, params: stored_feedback(network, params),
        scale,
    )


def stored_feedback(network: Network, params: Params) -> tuple[Array | None, ...]:
    """The feedback weights that stand in the params; None for a layer that passes no error on."""
    layers = zip(params, network.passes_error_on, strict=True)
    return tuple(
        feedback_of(i, weights) if passes_on else None for i, (weights, passes_on) in enumerate(layers)
    )


def feedback_of(i: int, weights: Weights) -> Array:
    """The feedback weights of layer `i`, or an error that says that there are none."""
    if "feedback" not in weights:
        raise ValueError(f"params[{i}]: expected the entry 'feedback', see init, got {sorted(weights)}")
    return weights["feedback"]


def feedback_rule(
    network: Network,
    loss: Loss,
    init: Callable[[Key], Params],
    feedback: Callable[[Key, Params], tuple[Array | None, ...]],
    scale: str,
) -> Rule:
    """A rule that differs from backprop in the weights that carry the error back.

    `feedback(key, params)` gives them, one a layer; None will do for one that passes no error on.
    """

    check_problem(network, loss)

    def signals(key: Key, params: Params, x: Array, y: Array, weight: float) -> Signals:
        routed = tuple(
            weights if each is None else {**weights, "feedback": each}
            for weights, each in zip(params, feedback(key, params), strict=True)
        )
        return backward_signals(network, loss, routed, x, y, weight, _feedback_product)

    return delta_rule(network, init, signals, scale)


def _feedback_product(layer: Layer, weights: Weights, x: Array) -> Array:
    if "feedback" not in weights:
        return plain_product(layer, weights, x)
    return with_feedback(layer.linear)(weights["w"], weights["feedback"], x)
