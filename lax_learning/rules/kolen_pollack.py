"""Kolen-Pollack: forward and feedback weights receive one update, and decay makes them meet."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from lax_learning._checks import check_flag, check_not_negative, check_scalar
from lax_learning.feedback import init_feedback
from lax_learning.networks import Network
from lax_learning.rules.feedback_alignment import feedback_rule, stored_feedback
from lax_learning.types import Key, Loss, Params, Rule, Weights


def kolen_pollack(
    network: Network, loss: Loss, *, decay: ArrayLike = 0.1, decay_bias: bool = False, scale: str = "gradient"
) -> Rule:
    """Feedback alignment whose feedback weights learn as their forward weights do.

    `dw = dW + decay w`, `dfeedback = dW + decay feedback`, with `dW = x^T delta / batch` from the error
    that came back through `feedback`. With one optimiser of learning rate eta for both,
    `w - feedback` shrinks by `(1 - eta decay)` a step.

    A first layer has no feedback and does not decay, unless it is recurrent. Both halves of a pair must go
    through the same optimiser: do not mask the feedback here, and clip with `clip_by_forward_norm`.

    Args:
      network: the network.
      loss: per-example loss.
      decay: lambda, >= 0; may be traced. It is not multiplied by the scale.
      decay_bias: whether the biases of the layers with feedback decay too, as in the tutorial, which
        keeps the bias as a column of the weights.
      scale: "gradient" or "tutorial", see `backprop`.

    Returns:
      The rule.

    Raises:
      TypeError: for a network or a loss of another kind, or a `decay_bias` that is no bool.
      ValueError: if decay < 0 or the scale is unknown.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import lax_learning as ll
      >>> rule = ll.kolen_pollack(ll.mlp((3, 4, 2)), ll.squared_error, decay=0.1)
      >>> key = jax.random.key(0)
      >>> params = rule.init(key)
      >>> _, grads = rule.value_and_grad(key, params, jnp.ones((5, 3)), jnp.zeros((5, 2)))
      >>> w, feedback = params[1]["w"], params[1]["feedback"]
      >>> pair = grads[1]["w"] - grads[1]["feedback"]
      >>> bool(jnp.allclose(pair, 0.1 * (w - feedback), atol=1e-6))
      True

    References:
      Kolen, Pollack, Backpropagation without weight transport,
      https://doi.org/10.1109/ICNN.1994.374486, 1994.
      Akrout et al., Deep learning without weight transport, https://arxiv.org/abs/1904.05391, 2019.
    """
    check_not_negative("decay", decay)
    check_scalar("decay", decay)
    check_flag("decay_bias", decay_bias)
    aligned = feedback_rule(
        network,
        loss,
        partial(init_feedback, network),
        lambda key, params: stored_feedback(network, params),
        scale,
    )

    def paired(weights: Weights, grads: Weights) -> Weights:
        if "feedback" not in weights:
            return grads
        names = _names(weights)
        kept = () if decay_bias else ("b",)

        def of(name: str, g: Array, w: Array) -> Array:
            data = grads["w"].astype(g.dtype) if name == "feedback" else g
            return data if name in kept else data + jnp.asarray(decay, g.dtype) * w

        leaves = map(of, names, jax.tree.leaves(grads), jax.tree.leaves(weights))
        return jax.tree.unflatten(jax.tree.structure(weights), leaves)

    def value_and_grad(key: Key, params: Params, x: ArrayLike, y: ArrayLike) -> tuple[Array, Params]:
        value, grads = aligned.value_and_grad(key, params, x, y)
        pairs = [paired(w, g) for w, g in zip(params, grads, strict=True)]
        return value, jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(pairs))

    return aligned._replace(value_and_grad=value_and_grad)


def _names(weights: Weights) -> list[str]:
    """The entry of a layer that each leaf belongs to, in the order of the leaves."""
    structure = jax.tree.structure(weights)
    numbered = jax.tree.unflatten(structure, range(structure.num_leaves))
    names = {i: name for name in weights for i in jax.tree.leaves(numbered[name])}
    return [names[i] for i in range(structure.num_leaves)]
