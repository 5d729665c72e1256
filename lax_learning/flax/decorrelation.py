"""Decorrelated inputs for layers, and their dynamics after a batch."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from lax_learning.decorrelation import Decorrelated
from lax_learning.flax.conversion import iter_modules
from lax_learning.flax.layers import Conv, Credited, Decorrelating, Watch, watching
from lax_learning.layers import Layer, Reads, identity
from lax_learning.networks import Network
from lax_learning.types import Dynamics, Key


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


def update_decorrelation(key: Key, model: Any, *args: Any, **kwargs: Any) -> Decorrelated:
    """Lets every layer with decorrelation learn from its inputs while the model runs: `R <- R - eta (...) R`.

    Call it before the weights change, as `lax_learning.decorrelated_rule` does. In a compiled step this pass
    and that of the loss become one. Inputs of a layer that is called more than once are joined.

    Args:
      key: which vectors are drawn where the dynamics take a subsample.
      model: an `nnx.Module`; R changes, all else stays.
      *args, **kwargs: what it is called with.

    Returns:
      How decorrelated the inputs were, one number a layer, in the order of their first calls.

    Raises:
      ValueError: for a model without decorrelation.

    Example:
      >>> import lax_learning as ll
      >>> from lax_learning.flax import Decorrelation, convert
      >>> model = convert(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), Decorrelation(ll.decorrelation(0.1)))
      >>> update_decorrelation(jax.random.key(0), model, jnp.ones((5, 3))).loss.shape
      (1,)

    References:
      Ahmad, Schrader, van Gerven, Constrained parameter inference as a principle for learning,
      https://arxiv.org/abs/2203.13203, 2022.
    """
    copy = nnx.clone(model, graph=True)
    paths = {id(module): path for path, module in iter_modules(copy)}
    seen: dict[tuple[Any, ...], tuple[list[Array], Reads]] = {}

    def look(layer: Credited, x: Array, reads: Reads) -> None:
        seen.setdefault(paths[id(layer)], ([], reads))[0].append(x)

    with watching(Watch(inputs=look)):
        copy(*args, **kwargs)
    if not seen:
        raise ValueError("model: expected layers with decorrelation, see convert and Decorrelation, got none")

    layers = dict(iter_modules(model))
    losses = []
    for k, (path, (inputs, reads)) in zip(jax.random.split(key, len(seen)), seen.items(), strict=True):
        layer = layers[path]
        x = inputs[0] if len(inputs) == 1 else jnp.concatenate(inputs)
        network = Network((Layer(_no_init, layer.linear, identity, reads),), ())
        state, diagnostics = layer.dynamics.update(k, layer.decorrelation.get_value(), (x,), network)
        layer.decorrelation.set_value(state)
        losses.append(diagnostics.loss)
    return Decorrelated(jnp.concatenate(losses))


def _no_init(key: Key) -> dict[str, Array]:
    raise NotImplementedError("a layer of a model is not drawn anew")
