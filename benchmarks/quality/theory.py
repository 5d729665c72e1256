"""Theory of perturbation rules: variance relative to the squared gradient, for small noise.

To first order in sigma, the change of the loss is `c = g . s` for any network, with gradient g and noise s,
and the moments of normal noise give the variance in closed form. Layer l has gradient `g_l`, `D_l` parameters
and `M_l` units.

Weight perturbation and forward gradient, `ghat = c s`:

    tr Cov ghat_l = |g_l|^2 + D_l |g|^2,        in total (D + 1) |g|^2

With random signs instead of normal noise, it is `D_l |g|^2 - |g_l|^2`, in total `(D - 1) |g|^2`.

Node perturbation and forward gradient on activities, where each of B examples has its own noise `xi_b` and
hence its own change `c_b = delta_b . xi_b`, with the teaching signal `delta` at the pre-activations, and a 1
appended to the inputs x for the bias:

    tr Cov ghat_l = 1/B^2 sum_b |x_bl|^2 (|delta_bl|^2 + M_l |delta_b|^2)

For one layer and one example, this is `(M + 1) |g|^2`. If layers are perturbed one at a time, `|delta_bl|^2`
replaces `|delta_b|^2`. The mean of K gradients has variance v/K and SNR across draws K/v.

The squared cosine is a ratio of two correlated quantities: when the changes c are large, the estimate is long
both along g and across it. Conditioned on the changes, the noise has a residual variance A along the
gradient, and P across it:

    E cos^2 = (K + A) / (K + A + P),        A = 0, P = D - 1 for weight perturbation in total

This is exact for weight perturbation in total (a Beta distribution), for single gradients of one layer, and
for one example. Otherwise it is a ratio of means: a few percent too low for layers of tens of units, and 15 %
for 3 units.

Source: Werfel, Xie, Seung, Learning curves for stochastic gradient descent in linear feedforward networks,
2005, https://doi.org/10.1162/089976605774320539, for one layer; the rest follows in the same way.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

import lax_learning as ll
from lax_learning.metrics import by_path, inner_product
from lax_learning.types import Key, Params


class Exact(NamedTuple):
    """Exact gradient of the mean loss of a batch, with inputs and teaching signals of every layer."""

    grads: Params  # gradient, a sequence of layers
    inputs: list[Array]  # inputs of each layer's product, `[batch, ...]`
    deltas: list[Array]  # teaching signals of single examples, each a batch of one, `[batch, 1, ...]`


def exact_signals(model: ll.Model, loss: ll.Loss, key: Key, params: Params, x: Array, y: Array) -> Exact:
    """Returns exact gradient and teaching signals of a model with one product per layer."""
    rule = ll.backprop(model, loss)
    assert rule.signals is not None
    signals = partial(rule.signals, key, params, ())
    inputs = ll.tapped(model).run(params, x).inputs
    deltas = jax.vmap(lambda x, y: signals(x[None], y[None]).deltas)(x, y)
    grads = rule.value_and_grad(key, params, (), x, y)[1]
    return Exact(grads, [read for (read,) in inputs.values()], [deltas[name] for name in inputs])


class Theory(NamedTuple):
    """Moments of one estimate in units of `|gradient|^2`, by layer and in total, `[layers + 1]`."""

    variance: Array  # `tr Cov ghat`
    along: Array  # residual variance along the gradient, A
    across: Array  # residual variance across the gradient, P


def _with_total(of_layers: Array) -> Array:
    return jnp.append(of_layers, jnp.sum(of_layers))


def _squares(grads: Params) -> Array:
    """`|g_l|^2`, with `|g|^2` at the end."""
    return _with_total(jnp.stack([*by_path(lambda g: inner_product(g, g), grads, depth=1).values()]))


def weight_perturbation(exact: Exact, *, fourth_moment: float = 3.0) -> Theory:
    """Returns the theory of weight perturbation; the fourth moment is 3 for normal noise, and 1 for signs.

    With `r = |g|^2 / |g_l|^2`, the variance is `D_l r + fourth_moment - 2`, `A = r - 1`, `P = (D_l - 1) r`.
    """
    sizes = [float(sum(leaf.size for leaf in jax.tree.leaves(layer))) for layer in exact.grads]
    squares = _squares(exact.grads)
    others = squares[-1] / squares
    along, across = others - 1, (_with_total(jnp.asarray(sizes)) - 1) * others
    return Theory(along + across + fourth_moment - 1, along, across)


def node_perturbation(exact: Exact, *, layerwise: bool = False) -> Theory:
    """Returns the theory of node perturbation; NaN unless all layers are dense.

    With `y_b = x_b g`, the change of the pre-activations for a step along g,
    `A = sum_b (|delta_b|^2 |y_b|^2 - (delta_b . y_b)^2) / (B^2 |g|^4)`. The changes of the loss contribute
    another `2 sum_b (delta_b . y_b)^2 / (B^2 |g|^4)` along the gradient.
    """
    if any(x.ndim != 2 for x in exact.inputs) or any(d.ndim != 3 for d in exact.deltas):
        return _unknown(exact)
    grads = exact.grads
    layers = [(g, x, d[:, 0]) for g, x, d in zip(grads, exact.inputs, exact.deltas, strict=True)]
    steps = [x @ g["w"] + g.get("b", 0) for g, x, _ in layers]
    units = jnp.array([[float(delta.shape[1])] for *_, delta in layers])
    inputs = jnp.stack([jnp.sum(jnp.square(x), axis=1) + ("b" in g) for g, x, _ in layers])
    lengths = jnp.stack([jnp.sum(jnp.square(delta), axis=1) for *_, delta in layers])
    told = lengths if layerwise else jnp.sum(lengths, axis=0)
    pulls = jnp.stack([jnp.sum(delta * y, axis=1) for (*_, delta), y in zip(layers, steps, strict=True)])
    noise = jnp.stack([jnp.sum(jnp.square(y), axis=1) for y in steps]) * told  # all [layers, batch]

    squares, batch = _squares(grads), inputs.shape[1]
    by_changes = _with_total(jnp.sum(jnp.square(pulls), axis=1))
    if not layerwise:  # one change of the loss for the noise of all layers
        by_changes = by_changes.at[-1].set(jnp.sum(jnp.square(jnp.sum(pulls, axis=0))))
    variance = _with_total(jnp.sum(inputs * (lengths + units * told), axis=1)) / (batch**2 * squares)
    by_changes = by_changes / jnp.square(batch * squares)
    along = _with_total(jnp.sum(noise, axis=1)) / jnp.square(batch * squares) - by_changes
    return Theory(variance, along, variance - along - 2 * by_changes)


def _unknown(exact: Exact) -> Theory:
    return Theory(*[jnp.full(len(exact.grads) + 1, jnp.nan)] * 3)


THEORY: dict[str, Callable[[Exact], Theory]] = {
    "weight_perturbation": weight_perturbation,
    "weight_perturbation_central": weight_perturbation,
    "weight_perturbation_signs": partial(weight_perturbation, fourth_moment=1.0),
    "forward_gradient": weight_perturbation,
    "node_perturbation": node_perturbation,
    "node_perturbation_layerwise": partial(node_perturbation, layerwise=True),
    "forward_gradient_activities": node_perturbation,
}
"""Rules with a known theory, by name."""


def predict(name: str, exact: Exact, num_samples: ArrayLike) -> dict[str, Array]:
    """Returns theoretical metrics `[layers + 1]` for `num_samples` averaged gradients; NaN if unknown."""
    variance, along, across = THEORY.get(name, _unknown)(exact)
    count = jnp.asarray(num_samples, jnp.float32)
    return {
        "relative_variance": variance / count,
        "snr_draws": count / variance,
        "cosine_squared": (count + along) / (count + along + across),
    }
