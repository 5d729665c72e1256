"""Theory of perturbation: variance relative to the squared gradient, for small noise.

To first order in sigma the change of the loss is `c = g . s`, whatever the network, and the moments of normal
noise give the variance in closed form. `|g|` is the whole gradient, `g_l` that of a layer of `D_l`
parameters, `M_l` units and N inputs.

Weight perturbation and forward gradient, `ghat = c s`:

    tr Cov ghat_l = |g_l|^2 + D_l |g|^2,        in total (D + 1) |g|^2: O(MN)

and with random signs in place of normal noise `D_l |g|^2 - |g_l|^2`, in total `(D - 1) |g|^2`. Node
perturbation and forward gradient on activities, where every example b of B has noise of its own and so a
change `c_b = delta_b . xi_b` of its own, `delta` the teaching signal at the pre-activations, and x with a 1
for the bias:

    tr Cov ghat_l = 1/B^2 sum_b |x_bl|^2 (|delta_bl|^2 + M_l |delta_b|^2)

with one layer and one example `(M + 1) |g|^2`: O(M). One layer at a time, `|delta_bl|^2` takes the place of
`|delta_b|^2`. The mean of K gradients has 1/K of the variance v, and SNR across draws K/v (`S / (n + 1)` for
S gradients of n weights).

The squared cosine is a ratio of two numbers that fluctuate together: a gradient from larger changes c is
longer along g and across it alike. So take the moments of the noise given the changes. What c tells of s
lies along c; the rest of the noise has a variance along the gradient, A, and one across it, P, and

    E cos^2 = (K + A) / (K + A + P),        A = 0, P = D - 1 for weight perturbation in total,

exact there (a Beta distribution, `K / (K + D - 1)`), for single gradients of one layer and for one example;
otherwise a ratio of means: a few per cent too low where layers have tens of units, 15 % where they have 3.

Source: Werfel, Xie, Seung, Learning curves for stochastic gradient descent in linear feedforward networks,
https://doi.org/10.1162/089976605774320539, 2005, for linear networks of one layer; the sums over layers and
examples and the cosine follow in the same way from the moments of the noise.
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
    """Gradient of a batch by backprop, with the inputs and teaching signals of every layer.

    Fields:
      grads: the gradient of the mean loss, a sequence of layers.
      inputs: `[batch, ...]`, what the product of each layer reads.
      deltas: `[batch, 1, ...]`, the teaching signal of every example as in a batch of one.
    """

    grads: Params
    inputs: list[Array]
    deltas: list[Array]


def exact_signals(model: ll.Model, loss: ll.Loss, key: Key, params: Params, x: Array, y: Array) -> Exact:
    """Returns the exact gradient and teaching signals of a model whose layers are one product each."""
    rule = ll.backprop(model, loss)
    assert rule.signals is not None
    signals = partial(rule.signals, key, params, ())
    inputs = ll.tapped(model).run(params, x).inputs
    deltas = jax.vmap(lambda x, y: signals(x[None], y[None]).deltas)(x, y)
    grads = rule.value_and_grad(key, params, (), x, y)[1]
    return Exact(grads, [read for (read,) in inputs.values()], [deltas[name] for name in inputs])


class Theory(NamedTuple):
    """Of one gradient, in units of `|gradient|^2`: of every layer and of all together, `[layers + 1]`.

    Fields:
      variance: `tr Cov ghat`.
      along: its part along the gradient that the changes of the loss do not determine, A.
      across: its part across the gradient, P.
    """

    variance: Array
    along: Array
    across: Array


def _with_total(of_layers: Array) -> Array:
    return jnp.append(of_layers, jnp.sum(of_layers))


def _squares(grads: Params) -> Array:
    """`|g_l|^2`, and `|g|^2` at the end."""
    return _with_total(jnp.stack([*by_path(lambda g: inner_product(g, g), grads, depth=1).values()]))


def weight_perturbation(exact: Exact, *, fourth_moment: float = 3.0) -> Theory:
    """`D_l |g|^2 / |g_l|^2 + 1`, in total D + 1; with a fourth moment of 1, random signs, - 1 for + 1.

    `A = |g|^2 / |g_l|^2 - 1`: the noise of the other layers; `P = (D_l - 1) |g|^2 / |g_l|^2`.
    """
    sizes = [float(sum(leaf.size for leaf in jax.tree.leaves(layer))) for layer in exact.grads]
    squares = _squares(exact.grads)
    others = squares[-1] / squares
    along, across = others - 1, (_with_total(jnp.asarray(sizes)) - 1) * others
    return Theory(along + across + fourth_moment - 1, along, across)


def node_perturbation(exact: Exact, *, layerwise: bool = False) -> Theory:
    """`sum_b |x_bl|^2 (|delta_bl|^2 + M_l |delta_b|^2) / (B^2 |g_l|^2)`; NaN unless all layers are dense.

    With `y_b = x_b g`, what a step along g adds to the pre-activations,
    `A = sum_b (|delta_b|^2 |y_b|^2 - (delta_b . y_b)^2) / (B^2 |g|^4)`, and the variance has another
    `2 sum_b (delta_b . y_b)^2 / (B^2 |g|^4)` along the gradient, by the changes of the loss.
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
"""The rules of which theory says something; more by name."""


def predict(name: str, exact: Exact, num_samples: ArrayLike) -> dict[str, Array]:
    """Metrics of a rule by theory, with K gradients averaged, each `[layers + 1]`; NaN if unknown.

    Args:
      name: of the rule.
      exact: the exact gradient and teaching signals.
      num_samples: number K of gradients that are averaged.
    """
    variance, along, across = THEORY.get(name, _unknown)(exact)
    count = jnp.asarray(num_samples, jnp.float32)
    return {
        "relative_variance": variance / count,
        "snr_draws": count / variance,
        "cosine_squared": (count + along) / (count + along + across),
    }
