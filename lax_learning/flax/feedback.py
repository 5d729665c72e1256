"""Feedback weights for layers: what carries the error back in place of the transposed kernel."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer, lecun_normal
from jaxtyping import Array

from lax_learning._checks import check_choice, check_not_negative, check_positive
from lax_learning.flax.layers import Credited, Feedback, LearnedFeedback
from lax_learning.rules.sign_symmetry import signed

_AS_WEIGHTS = lecun_normal()


@dataclass(frozen=True)
class FeedbackAlignment:
    """The error comes back through fixed random weights: `dx = delta feedback^T`.

    As `lax_learning.feedback_alignment`. The weights are a `Feedback`, no `nnx.Param`: gradients, optimisers
    and decay leave them alone. The first layer passes no error on and needs none.

    Fields:
      init: initialiser of the feedback weights.

    Example:
      >>> layer = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
      >>> from lax_learning.flax import convert
      >>> convert(layer, FeedbackAlignment(), rngs=nnx.Rngs(1)).feedback.shape
      (3, 4)

    References:
      Lillicrap et al., Random synaptic feedback weights support error backpropagation for deep
      learning, https://doi.org/10.1038/ncomms13276, 2016.
    """

    init: Initializer = _AS_WEIGHTS
    learn: ClassVar[bool] = False

    def give(self, layer: Credited, rngs: nnx.Rngs | None) -> None:
        layer.route, layer.feedback = self, Feedback(_drawn(self.init, layer, rngs))

    def pair(self, w: Array, stored: Array | None, noise: nnx.RngStream | None) -> tuple[Array, Array]:
        return w, _given(stored)


@dataclass(frozen=True)
class SignSymmetry:
    """The error comes back through `gain |B| sign(w)`.

    As `lax_learning.sign_symmetry`, `|B|` being 1 ("unit"), drawn once ("fixed"), or drawn at every call of
    the layer ("redrawn"), with keys from the stream `noise`.

    Fields:
      magnitude: "unit", "fixed" or "redrawn".
      gain: factor on the magnitudes, > 0.
      init: initialiser of the magnitudes.

    Raises:
      ValueError: for an unknown magnitude, or gain <= 0.

    Example:
      >>> SignSymmetry(gain=0.5).pair(jnp.array([2.0, -3.0]), None, None)[1].tolist()
      [0.5, -0.5]

    References:
      Liao, Leibo, Poggio, How important is weight symmetry in backpropagation?,
      https://arxiv.org/abs/1510.05067, 2016.
    """

    magnitude: str = "unit"
    gain: float = 1.0
    init: Initializer = _AS_WEIGHTS
    learn: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_choice("magnitude", self.magnitude, ("unit", "fixed", "redrawn"))
        check_positive("gain", self.gain)

    def give(self, layer: Credited, rngs: nnx.Rngs | None) -> None:
        fixed, redrawn = self.magnitude == "fixed", self.magnitude == "redrawn"
        layer.feedback = Feedback(_drawn(self.init, layer, rngs)) if fixed else nnx.data(None)
        layer.noise = _there(rngs)["noise"].fork() if redrawn else nnx.data(None)
        layer.route = self

    def pair(self, w: Array, stored: Array | None, noise: nnx.RngStream | None) -> tuple[Array, Array]:
        if self.magnitude == "unit":
            return w, signed(w, jnp.ones_like(w), self.gain)
        size = _given(stored) if noise is None else self.init(noise(), w.shape, w.dtype)
        return w, signed(w, jnp.abs(size), self.gain)


@dataclass(frozen=True)
class KolenPollack:
    """Feedback weights that learn as the kernel does: `dw = dW + decay w`, `dfeedback = dW + decay feedback`.

    As `lax_learning.kolen_pollack`. The weights are a `LearnedFeedback`, an `nnx.Param`: `nnx.grad` returns
    their gradient and one `nnx.Optimizer` updates both. The decay enters once for each time that the layer
    is called. With clipping, take `lax_learning.clip_by_forward_norm`.

    Fields:
      decay: lambda, >= 0.
      init: initialiser of the feedback weights.

    Raises:
      ValueError: for decay < 0.

    Example:
      >>> from lax_learning.flax import convert
      >>> layer = convert(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), KolenPollack(decay=0.0), rngs=nnx.Rngs(1))
      >>> grads = nnx.grad(lambda layer: layer(jnp.ones((5, 3))).sum())(layer)
      >>> bool((grads["feedback"][...] == grads["kernel"][...]).all())
      True

    References:
      Kolen, Pollack, Backpropagation without weight transport,
      https://doi.org/10.1109/ICNN.1994.374486, 1994.
      Akrout et al., Deep learning without weight transport, https://arxiv.org/abs/1904.05391, 2019.
    """

    decay: float = 0.1
    init: Initializer = _AS_WEIGHTS
    learn: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_not_negative("decay", self.decay)

    def give(self, layer: Credited, rngs: nnx.Rngs | None) -> None:
        layer.route, layer.feedback = self, LearnedFeedback(_drawn(self.init, layer, rngs))

    def pair(self, w: Array, stored: Array | None, noise: nnx.RngStream | None) -> tuple[Array, Array]:
        return _decaying(self.decay, w), _decaying(self.decay, _given(stored))


def _drawn(init: Initializer, layer: Credited, rngs: nnx.Rngs | None) -> Array:
    return init(_there(rngs)["feedback"](), layer.kernel.shape, layer.kernel.dtype)


def _there(rngs: nnx.Rngs | None) -> nnx.Rngs:
    if rngs is None:
        raise ValueError("rngs: expected nnx.Rngs to draw feedback weights from, got None")
    return rngs


def _given(stored: Array | None) -> Array:
    if stored is None:
        raise ValueError("feedback: expected stored weights of the shape of the kernel, got None")
    return stored


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _decaying(decay: float, w: Array) -> Array:
    """`w`, with `decay w` added to its gradient."""
    return w


_decaying.defvjp(
    lambda decay, w: (w, w),
    lambda decay, w, g: (g + jnp.asarray(decay, g.dtype) * w,),
)
