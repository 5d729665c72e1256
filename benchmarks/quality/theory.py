"""What theory says of perturbation: variance relative to the squared gradient, for small noise.

To first order in sigma the change of the loss is `g . s`, whatever the network, and the moments of normal
noise give the variance in closed form. `|g|` is the whole gradient, `g_l` that of a layer of `D_l`
parameters, `M_l` units and N inputs.

Weight perturbation and forward gradient, `ghat = (g . s) s`:

    tr Cov ghat_l = |g_l|^2 + D_l |g|^2,        in total (D + 1) |g|^2: O(MN)

and with random signs in place of normal noise `D_l |g|^2 - |g_l|^2`, in total `(D - 1) |g|^2`. Node
perturbation and forward gradient on activities, where every example b of B has noise of its own, `delta` the
teaching signal at the pre-activations, and x with a 1 for the bias:

    tr Cov ghat_l = 1/B^2 sum_b |x_bl|^2 (|delta_bl|^2 + M_l |delta_b|^2)

with one layer and one example `(M + 1) |g|^2`: O(M). One layer at a time, `|delta_bl|^2` takes the place of
`|delta_b|^2`. The mean of K gradients has 1/K of the variance v; with it, as the estimates are unbiased,
error v/K, SNR over draws K/v (`S / (n + 1)` for S gradients of n weights), and squared cosine about
`1 / (1 + v/K)`, for weight perturbation `K / (K + D + 1)`: numerator and denominator are averaged apart, and
their fluctuations neglected (for K = 1 the exact value is `1/D`, this one `1 / (D + 2)`).

Source: Werfel, Xie, Seung, Learning curves for stochastic gradient descent in linear feedforward networks,
https://doi.org/10.1162/089976605774320539, 2005, for linear networks of one layer; the sums over layers and
examples follow in the same way from the fourth moments of the noise.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from lax_learning.metrics import inner_product
from lax_learning.types import Params, Signals

Prediction = Callable[[Params, Signals], Array]
"""`(exact gradient, exact signals) -> variance / |gradient|^2` for K = 1, `[layers + 1]`."""


def _squares(grads: Params) -> Array:
    """`|g_l|^2` of every layer."""
    return jnp.stack([inner_product(layer, layer) for layer in grads])


def _sizes(grads: Params) -> Array:
    """`D_l` of every layer."""
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(layer)) for layer in grads]
    return jnp.asarray(sizes, jnp.float32)


def _relative(variances: Array, squares: Array) -> Array:
    """Of every layer, and of all together at the end."""
    return jnp.append(variances / squares, jnp.sum(variances) / jnp.sum(squares))


def weight_perturbation(grads: Params, signals: Signals, *, signs: bool = False) -> Array:
    """`D_l |g|^2 / |g_l|^2 + 1`, in total D + 1; with signs - 1 in place of + 1."""
    squares = _squares(grads)
    return _relative(_sizes(grads) * jnp.sum(squares) + (-squares if signs else squares), squares)


def node_perturbation(grads: Params, signals: Signals, *, layerwise: bool = False) -> Array:
    """`sum_b |x_bl|^2 (|delta_bl|^2 + M_l |delta_b|^2) / (B^2 |g_l|^2)`; NaN unless all layers are dense."""
    if any(x.ndim != 2 for x in signals.inputs) or any(d.ndim != 2 for d in signals.deltas):
        return jnp.full(len(grads) + 1, jnp.nan)
    of_layers = [jnp.sum(jnp.square(delta), axis=1) for delta in signals.deltas]
    of_all = sum(of_layers)

    def variance(weights: Params, x: Array, delta: Array, of_layer: Array) -> Array:
        inputs = jnp.sum(jnp.square(x), axis=1) + ("b" in weights)
        told = of_layer if layerwise else of_all
        return jnp.sum(inputs * (of_layer + delta.shape[1] * told)) / x.shape[0] ** 2

    variances = map(variance, grads, signals.inputs, signals.deltas, of_layers)
    return _relative(jnp.stack(list(variances)), _squares(grads))


def _weight_signs(grads: Params, signals: Signals) -> Array:
    return weight_perturbation(grads, signals, signs=True)


def _layerwise(grads: Params, signals: Signals) -> Array:
    return node_perturbation(grads, signals, layerwise=True)


THEORY: dict[str, Prediction] = {
    "weight_perturbation": weight_perturbation,
    "weight_perturbation_central": weight_perturbation,
    "weight_perturbation_signs": _weight_signs,
    "forward_gradient": weight_perturbation,
    "node_perturbation": node_perturbation,
    "node_perturbation_layerwise": _layerwise,
    "forward_gradient_activities": node_perturbation,
}
"""The rules of which theory says something; others may be added by name."""


def predict(name: str, grads: Params, signals: Signals, num_samples: ArrayLike) -> dict[str, Array]:
    """What theory says of a rule's metrics with K gradients averaged, each `[layers + 1]`; NaN where nothing.

    Args:
      name: of the rule.
      grads: the exact gradient, without feedback weights.
      signals: the exact teaching signals, of every example as in a batch of one.
      num_samples: number K of gradients that are averaged.
    """
    if name not in THEORY:
        nothing = jnp.full(len(grads) + 1, jnp.nan)
        return {"relative_variance": nothing, "cosine_squared": nothing}
    variance = THEORY[name](grads, signals) / jnp.asarray(num_samples, jnp.float32)
    return {"relative_variance": variance, "cosine_squared": 1 / (1 + variance)}
