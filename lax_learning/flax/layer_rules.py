"""What a layer can be given: feedback weights, a tap, decorrelated inputs, a cap."""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer, lecun_normal
from jaxtyping import Array

from lax_learning._checks import check_choice, check_count, check_not_negative, check_positive
from lax_learning.flax.layers import Conv, Credited, Decorrelating, Feedback, LearnedFeedback
from lax_learning.plasticity.k_cap import k_cap
from lax_learning.rules.sign_symmetry import signed
from lax_learning.types import Dynamics

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

    def pair(self, w: Array, stored: Array | None) -> tuple[Array, Array]:
        return w, _given(stored)


@dataclass(frozen=True)
class SignSymmetry:
    """The error comes back through `gain |B| sign(w)`.

    As `lax_learning.sign_symmetry`, `|B|` being 1 ("unit") or drawn once ("fixed").

    Fields:
      magnitude: "unit" or "fixed".
      gain: factor on the magnitudes, > 0.
      init: initialiser of fixed magnitudes.

    Raises:
      ValueError: for an unknown magnitude, or gain <= 0.

    Example:
      >>> SignSymmetry(gain=0.5).pair(jnp.array([2.0, -3.0]), None)[1].tolist()
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
        check_choice("magnitude", self.magnitude, ("unit", "fixed"))
        check_positive("gain", self.gain)

    def give(self, layer: Credited, rngs: nnx.Rngs | None) -> None:
        fixed = self.magnitude == "fixed"
        layer.feedback = Feedback(_drawn(self.init, layer, rngs)) if fixed else nnx.data(None)
        layer.route = self

    def pair(self, w: Array, stored: Array | None) -> tuple[Array, Array]:
        size = jnp.ones_like(w) if self.magnitude == "unit" else jnp.abs(_given(stored))
        return w, signed(w, size, self.gain)


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

    def pair(self, w: Array, stored: Array | None) -> tuple[Array, Array]:
        return _decaying(self.decay, w), _decaying(self.decay, _given(stored))


@dataclass(frozen=True)
class Taps:
    """A tap on the pre-activations, for `lax_learning.flax.value_and_grad`; the layer itself stays as it is.

    Example:
      >>> from lax_learning.flax import convert
      >>> convert(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), Taps()).tapped
      True
    """

    def give(self, layer: Credited, rngs: nnx.Rngs | None) -> None:
        layer.tapped = True


@dataclass(frozen=True)
class Decorrelation:
    """Uncorrelated inputs: `z = linear(w, R x + b)`, R learned by `update_decorrelation`.

    As `lax_learning.decorrelated`. R is a `Decorrelating`, no `nnx.Param`. Goes with any other rule.

    Fields:
      dynamics: from `lax_learning.decorrelation`.

    Example:
      >>> import lax_learning as ll
      >>> from lax_learning.flax import convert
      >>> layer = convert(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), Decorrelation(ll.decorrelation(1e-3)))
      >>> layer.decorrelation.get_value().layers[0]["R"].shape
      (3, 3)

    References:
      Ahmad, Schrader, van Gerven, Constrained parameter inference as a principle for learning,
      https://arxiv.org/abs/2203.13203, 2022.
    """

    dynamics: Dynamics

    def give(self, layer: Credited, rngs: nnx.Rngs | None) -> None:
        if isinstance(layer, Conv):
            dilation = layer.input_dilation or 1
            dilated = dilation != 1 if isinstance(dilation, int) else set(dilation) != {1}
            if (
                len(layer.kernel_size) != 2
                or layer.feature_group_count != 1
                or dilated
                or layer.mask is not None
            ):
                raise ValueError(
                    "decorrelation: expected a convolution over 2 axes in one group, with neither input "
                    f"dilation nor mask, got {len(layer.kernel_size)} axes, {layer.feature_group_count} "
                    f"groups, input dilation {dilation}, {'a' if layer.mask is not None else 'no'} mask"
                )
        state = self.dynamics.init((math.prod(layer.kernel.shape[:-1]),))
        layer.dynamics, layer.decorrelation = self.dynamics, Decorrelating(state)


@dataclass(frozen=True)
class KCap:
    """The k largest along the last axis fire, the others are 0: an activation, or given to layers.

    As `lax_learning.plasticity.k_cap`. On the pre-activations of a layer, with relu after it, it is the cap
    of the activities: `relu(cap(z)) = cap(relu(z))`.

    Fields:
      k: how many.

    Raises:
      TypeError, ValueError: if k is no positive int, or larger than the layer.

    Example:
      >>> KCap(2)(jnp.array([0.5, 2.0, 0.0, 1.0])).tolist()
      [0.0, 2.0, 0.0, 1.0]

    References:
      Papadimitriou et al., Brain computation by assemblies of neurons,
      https://doi.org/10.1073/pnas.2001893117, 2020.
    """

    k: int

    def __post_init__(self) -> None:
        check_count("k", self.k)

    def __call__(self, x: Array) -> Array:
        return k_cap(x, self.k)

    def give(self, layer: Credited, rngs: nnx.Rngs | None) -> None:
        if self.k > layer.kernel.shape[-1]:
            raise ValueError(
                f"k: expected at most {layer.kernel.shape[-1]}, the layer's outputs, got {self.k}"
            )
        layer.cap = self


def _drawn(init: Initializer, layer: Credited, rngs: nnx.Rngs | None) -> Array:
    if rngs is None:
        raise ValueError("rngs: expected nnx.Rngs to draw feedback weights from, got None")
    return init(rngs["feedback"](), layer.kernel.shape, layer.kernel.dtype)


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
