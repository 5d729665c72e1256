"""Sign-symmetric feedback: the weights that carry the error back share only their signs with `w`."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from lax_learning._checks import check_choice, check_positive, check_scalar
from lax_learning.feedback import init_feedback, init_forward
from lax_learning.networks import Network
from lax_learning.rules.feedback_alignment import feedback_rule, stored_feedback
from lax_learning.types import Key, Loss, Params, Rule


class _Form(NamedTuple):
    init: Callable[[Network, Key], Params]
    feedback: Callable[[Network, Key, Params], tuple[Array | None, ...]]


def _unit(network: Network, key: Key, params: Params) -> tuple[Array | None, ...]:
    return tuple(jnp.ones_like(weights["w"]) for weights in params)


def _fixed(network: Network, key: Key, params: Params) -> tuple[Array | None, ...]:
    return stored_feedback(network, params)


def _redrawn(network: Network, key: Key, params: Params) -> tuple[Array | None, ...]:
    return tuple(d["w"].astype(p["w"].dtype) for d, p in zip(network.init(key), params, strict=True))


_FORMS = {
    "unit": _Form(init_forward, _unit),
    "fixed": _Form(init_feedback, _fixed),
    "redrawn": _Form(init_forward, _redrawn),
}


def signed(w: Array, size: Array, gain: ArrayLike) -> Array:
    """The feedback weights `gain size sign(w)`."""
    return jnp.asarray(gain, size.dtype) * size * jnp.sign(w)


def sign_symmetry(
    network: Network, loss: Loss, *, magnitude: str = "unit", gain: ArrayLike = 1.0, scale: str = "gradient"
) -> Rule:
    """Backprop through `gain |B| sign(w)` in place of `w`.

    `delta_l = (delta_{l+1} (gain |B_{l+1}| sign(w_{l+1}))^T) phi'(z_l)`, with `|B|`

    - "unit": 1 (uniform sign-concordant feedback, uSF);
    - "fixed": drawn once as the layer's `w` is, kept as `feedback` in the params (frSF);
    - "redrawn": drawn anew as `w` on every pass, from the key (brSF).

    Args:
      network: the network.
      loss: per-example loss.
      magnitude: "unit", "fixed" or "redrawn".
      gain: factor on the magnitudes, > 0; may be traced. With unit magnitudes the size of a typical
        weight keeps the layers' steps in proportion.
      scale: "gradient" or "tutorial", see `backprop`.

    Returns:
      The rule.

    Raises:
      TypeError: for a network or a loss of another kind.
      ValueError: for an unknown magnitude or scale, or gain <= 0.

    Example:
      >>> import jax
      >>> import lax_learning as ll
      >>> rule = ll.sign_symmetry(ll.mlp((3, 4, 2)), ll.squared_error, magnitude="fixed")
      >>> sorted(rule.init(jax.random.key(0))[1])
      ['b', 'feedback', 'w']

    References:
      Liao, Leibo, Poggio, How important is weight symmetry in backpropagation?,
      https://arxiv.org/abs/1510.05067, 2016.
      Moskovitz, Litwin-Kumar, Abbott, Feedback alignment in deep convolutional networks,
      https://arxiv.org/abs/1812.06488, 2018.
    """
    check_choice("magnitude", magnitude, _FORMS)
    check_positive("gain", gain)
    check_scalar("gain", gain)
    form = _FORMS[magnitude]

    def feedback(key: Key, params: Params) -> tuple[Array | None, ...]:
        return tuple(
            None if size is None else signed(weights["w"], jnp.abs(size), gain)
            for size, weights in zip(form.feedback(network, key, params), params, strict=True)
        )

    return feedback_rule(network, loss, partial(form.init, network), feedback, scale)
