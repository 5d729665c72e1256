"""Updates of a 784-500-10 sigmoid network as an expert writes them in plain JAX for that network alone.

Sigmoid on both layers, the squared error summed over outputs, its mean over the batch. Every function takes
`(key, params, feedback, x, y, draw)` and returns `(loss, gradients)`; `params` and `feedback` are two dicts
with `w [in, out]` and `b [out]`; `draw(key, shape)` gives unit noise.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Layers = list[dict[str, Any]]
SIGMA = 0.1


def forward(params: Layers, x: Any, noise: Any = (0.0, 0.0)) -> tuple[Any, Any, Any, Any]:
    """Pre-activations and activities of both layers."""
    z1 = x @ params[0]["w"] + params[0]["b"] + noise[0]
    h1 = jax.nn.sigmoid(z1)
    z2 = h1 @ params[1]["w"] + params[1]["b"] + noise[1]
    return z1, h1, z2, jax.nn.sigmoid(z2)


def losses(output: Any, y: Any) -> Any:
    """Squared error of each example."""
    return jnp.sum((output - y) ** 2, axis=1)


def outer_products(x: Any, h1: Any, delta1: Any, delta2: Any) -> Layers:
    """Gradients from the error of each pre-activation."""
    return [{"w": x.T @ delta1, "b": delta1.sum(0)}, {"w": h1.T @ delta2, "b": delta2.sum(0)}]


def _carried_back(params: Layers, carrier: Any, x: Any, y: Any, *, from_output: bool) -> tuple[Any, Layers]:
    _, h1, _, output = forward(params, x)
    error = 2 * (output - y) / len(x)
    delta2 = error * output * (1 - output)
    delta1 = ((error if from_output else delta2) @ carrier.T) * h1 * (1 - h1)
    return losses(output, y).mean(), outer_products(x, h1, delta1, delta2)


def backprop(key: Any, params: Layers, feedback: Layers, x: Any, y: Any, draw: Any) -> tuple[Any, Layers]:
    """The exact gradient."""
    return _carried_back(params, params[1]["w"], x, y, from_output=False)


def feedback_alignment(
    key: Any, params: Layers, feedback: Layers, x: Any, y: Any, draw: Any
) -> tuple[Any, Layers]:
    """Backprop through fixed weights."""
    return _carried_back(params, feedback[1]["w"], x, y, from_output=False)


def direct_feedback_alignment(
    key: Any, params: Layers, feedback: Layers, x: Any, y: Any, draw: Any
) -> tuple[Any, Layers]:
    """The error of the output sent to the hidden layer."""
    return _carried_back(params, feedback[1]["w"], x, y, from_output=True)


def _two_runs(key: Any, params: Layers, x: Any, y: Any, draw: Any) -> tuple[Any, Any, Any, Any]:
    """Clean and noisy run with noise on the units, and the change of each loss over the batch size."""
    keys = jax.random.split(key)
    noise = [SIGMA * draw(k, (len(x), layer["w"].shape[1])) for k, layer in zip(keys, params, strict=True)]
    clean, noisy = forward(params, x), forward(params, x, noise)
    before = losses(clean[3], y)
    return noise, clean, noisy, (before, (losses(noisy[3], y) - before)[:, None] / len(x))


def node_perturbation(
    key: Any, params: Layers, feedback: Layers, x: Any, y: Any, draw: Any
) -> tuple[Any, Layers]:
    """The change of each loss times the noise on the units."""
    noise, clean, _, (before, change) = _two_runs(key, params, x, y, draw)
    factor = change / SIGMA**2
    return before.mean(), outer_products(x, clean[1], factor * noise[0], factor * noise[1])


def node_perturbation_activity(
    key: Any, params: Layers, feedback: Layers, x: Any, y: Any, draw: Any
) -> tuple[Any, Layers]:
    """The change of each loss times that of the pre-activations over its square norm, times their number."""
    _, clean, noisy, (before, change) = _two_runs(key, params, x, y, draw)
    d1, d2 = noisy[0] - clean[0], noisy[2] - clean[2]
    number = d1.shape[1] + d2.shape[1]
    square = jnp.sum(d1**2, axis=1, keepdims=True) + jnp.sum(d2**2, axis=1, keepdims=True)
    factor = number * change / square
    return before.mean(), outer_products(x, clean[1], factor * d1, factor * d2)


def weight_perturbation(
    key: Any, params: Layers, feedback: Layers, x: Any, y: Any, draw: Any
) -> tuple[Any, Layers]:
    """The change of the mean loss times the noise on the weights."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noise = jax.tree.unflatten(structure, [draw(k, w.shape) for k, w in zip(keys, leaves, strict=True)])
    moved = jax.tree.map(lambda w, n: w + SIGMA * n, params, noise)
    before, after = losses(forward(params, x)[3], y).mean(), losses(forward(moved, x)[3], y).mean()
    return before, jax.tree.map(lambda n: (after - before) / SIGMA * n, noise)


RULES: dict[str, Callable[..., tuple[Any, Layers]]] = {
    rule.__name__: rule
    for rule in (
        backprop,
        feedback_alignment,
        direct_feedback_alignment,
        node_perturbation,
        node_perturbation_activity,
        weight_perturbation,
    )
}


def training(rule: Callable[..., Any], draw: Any, draws: int, learning_rate: float) -> Callable[..., Any]:
    """Updates in a scan, each along the mean of so many draws.

    Returns:
      `(keys, params, feedback, x, y) -> (params, losses)`.
    """

    def train(keys: Any, params: Layers, feedback: Layers, x: Any, y: Any) -> tuple[Layers, Any]:
        def one(params: Layers, key: Any) -> tuple[Any, Layers]:
            if draws == 1:
                return rule(key, params, feedback, x, y, draw)

            def add(total: Any, key: Any) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, total, rule(key, params, feedback, x, y, draw)), None

            zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
            total, _ = jax.lax.scan(add, zeros, jax.random.split(key, draws))
            return jax.tree.map(lambda each: each / draws, total)

        def update(params: Layers, key: Any) -> tuple[Layers, Any]:
            loss, grads = one(params, key)
            return jax.tree.map(lambda w, g: w - learning_rate * g, params, grads), loss

        return jax.lax.scan(update, params, keys)

    return train
