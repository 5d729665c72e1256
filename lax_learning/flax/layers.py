"""`nnx.Linear` and `nnx.Conv` with places for what the rules need: feedback, taps, decorrelation, a cap.

A layer computes what its NNX class computes, with one function replaced: the product of inputs and kernel.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike

from lax_learning.convolution import _patches
from lax_learning.feedback import with_feedback
from lax_learning.layers import Linear as Product
from lax_learning.layers import Reads, rows
from lax_learning.types import Dynamics


class Feedback(nnx.Variable):
    """Weights that carry the error back. No `nnx.Param`: no gradient, decay or clipping reaches them."""


class LearnedFeedback(Feedback, nnx.Param):
    """Feedback weights of Kolen-Pollack: an `nnx.Param`, so that optimisers treat the pair alike."""


class Decorrelating(nnx.Variable):
    """What a layer has learned about its inputs, a `lax_learning.DecorrelationState` of one layer."""


@runtime_checkable
class LayerRule(Protocol):
    """What a layer is given: `give(layer, rngs)` sets its places, or says why it cannot serve the layer."""

    def give(self, layer: "Credited", rngs: nnx.Rngs | None) -> None: ...


class Route(Protocol):
    """How the error comes back: `pair(w, stored, noise) -> (w, feedback)`, as `with_feedback` takes them."""

    learn: ClassVar[bool]

    def pair(self, w: Array, stored: Array | None, noise: nnx.RngStream | None) -> tuple[Array, Array]: ...


class Watch(NamedTuple):
    """Who looks on while a model runs.

    Fields:
      tap: `(layer, inputs) -> z` in place of the pre-activation of every layer with a tap.
      inputs: `(layer, x, what the kernel reads in it)`, called by every layer with decorrelation.
    """

    tap: "Callable[[Credited, Array], Array] | None" = None
    inputs: "Callable[[Credited, Array, Reads], None] | None" = None


_watch: ContextVar[Watch] = ContextVar("watch", default=Watch())  # noqa: B039 (immutable)


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Lets `watch` look on while models run."""
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


class Credited(nnx.Module):
    """What `Linear` and `Conv` have in common.

    Attributes:
      route: how the error comes back; None for the transposed kernel.
      feedback: stored feedback weights, of the shape of the kernel, if the route has any.
      noise: the keys of a route that draws its weights anew.
      decorrelation, dynamics: state and dynamics that make the inputs uncorrelated; None for plain inputs.
      tapped: whether the pre-activation is open to `value_and_grad`.
      cap: what the pre-activation goes through at last; None for nothing.
    """

    plain: ClassVar[type[nnx.Module]]
    operation: ClassVar[str]
    route: Route | None = None
    feedback: Feedback | None = None
    noise: nnx.RngStream | None = None
    decorrelation: Decorrelating | None = None
    dynamics: Dynamics | None = None
    tapped: bool = False
    cap: Callable[[Array], Array] | None = None
    kernel: nnx.Param
    bias: nnx.Param | None

    def __call__(self, inputs: ArrayLike, out_sharding: Any = None) -> Array:
        inputs = jnp.asarray(inputs)
        tap = _watch.get().tap if self.tapped else None
        z = self.pre_activation(inputs, out_sharding) if tap is None else tap(self, inputs)
        return z if self.cap is None else self.cap(z)

    def pre_activation(self, inputs: Array, out_sharding: Any = None, **changed: Any) -> Array:
        """What the NNX class computes, with some attributes changed."""
        view = object.__new__(self.plain)
        vars(view).update({**vars(self), **changed})
        vars(view)[self.operation] = partial(self._product, getattr(view, self.operation))
        return self.plain.__call__(view, inputs, out_sharding)

    def linear(self, w: Array, x: Array) -> Array:
        """The product alone, without bias: linear in both."""
        return self.pre_activation(x, kernel=w, bias=None, use_bias=False)

    def reads(self, w: Array, *args: Any, **kwargs: Any) -> Reads:
        """What the kernel `w` reads in the inputs of its product, which was called with these arguments."""
        raise NotImplementedError

    def _product(self, operation: Callable[..., Array], x: Array, w: Array, *args: Any, **kwargs: Any):
        def plain(w: Array, x: Array) -> Array:
            return operation(x, w, *args, **kwargs)

        product: Product = plain

        if self.decorrelation is not None:
            reads, look = self.reads(w, *args, **kwargs), _watch.get().inputs
            if look is not None:
                look(self, x, reads)
            (state,) = self.decorrelation.get_value().layers
            learned = jax.tree.map(lambda leaf: leaf.astype(x.dtype), state)
            product = reads.transformed(product, learned["R"], learned.get("b"))
        if self.route is None:
            return product(w, x)
        stored = None if self.feedback is None else self.feedback[...].astype(w.dtype)
        if stored is not None and getattr(self, "mask", None) is not None:
            stored = stored * getattr(self, "mask")  # noqa: B009 (only a convolution has one)
        return with_feedback(product, learn=self.route.learn)(*self.route.pair(w, stored, self.noise), x)


class Linear(Credited, nnx.Linear):
    """`nnx.Linear`, `z = x w + b`, with credit assigned by rules.

    Args:
      in_features: size of `x [..., in_features]`.
      out_features: size of `z [..., out_features]`.
      rules: what to give the layer, see `FeedbackAlignment`, `Taps` and the others.
      rngs: as of `nnx.Linear`, whose kernel and bias come from the same keys; feedback weights come from the
        stream `feedback`.
      **options: as of `nnx.Linear`.

    Raises:
      ValueError: if a rule cannot serve the layer.

    Example:
      >>> import jax.numpy as jnp
      >>> from lax_learning.flax import FeedbackAlignment
      >>> layer = Linear(3, 4, rules=[FeedbackAlignment()], rngs=nnx.Rngs(0, feedback=1))
      >>> layer(jnp.ones((5, 3))).shape, layer.feedback.shape
      ((5, 4), (3, 4))
      >>> sorted(nnx.state(layer, nnx.Param))
      ['bias', 'kernel']
    """

    plain, operation = nnx.Linear, "dot_general"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rules: Sequence[LayerRule] = (),
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(in_features, out_features, rngs=rngs, **options)
        for rule in rules:
            rule.give(self, rngs)

    def reads(self, w: Array, *args: Any, **kwargs: Any) -> Reads:
        return rows(w.shape[0])


class Conv(Credited, nnx.Conv):
    """`nnx.Conv`, `z = conv(x, w) + b`, with credit assigned by rules.

    Args:
      in_features: channels of `x [batch, ..., in_features]`.
      out_features: channels of `z [batch, ..., out_features]`.
      kernel_size: extent of the kernel.
      rules, rngs: as of `Linear`.
      **options: as of `nnx.Conv`.

    Raises:
      ValueError: if a rule cannot serve the layer.

    Example:
      >>> import jax.numpy as jnp
      >>> from lax_learning.flax import KolenPollack
      >>> layer = Conv(1, 4, (3, 3), strides=2, rules=[KolenPollack()], rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((5, 8, 8, 1))).shape
      (5, 4, 4, 4)
    """

    plain, operation = nnx.Conv, "conv_general_dilated"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        *args: Any,
        rules: Sequence[LayerRule] = (),
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(in_features, out_features, kernel_size, *args, rngs=rngs, **options)
        for rule in rules:
            rule.give(self, rngs)

    def reads(self, w: Array, strides: Any, padding: Any, *, rhs_dilation: Any, **kwargs: Any) -> Reads:
        height, width, num_inputs, num_outputs = w.shape
        return _patches((height, width, num_inputs, num_outputs), strides, padding, rhs_dilation)[0]
