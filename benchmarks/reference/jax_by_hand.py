"""Rules for a 784-500-10 sigmoid network, written by hand in plain JAX for that network.

Sigmoid on both layers; the loss is the squared error summed over outputs, averaged over the batch. Every rule
takes `(key, params, feedback, x, y, draw)` and returns `(loss, gradients)`. `params` and `feedback` are lists
of two dicts with `w [in, out]` and `b [out]`; `draw(key, shape)` returns unit noise.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Layers = list[dict[str, Any]]
Estimate = tuple[Any, Layers]
SIGMA = 0.1


def forward(params: Layers, x: Any, noise: Any = (0.0, 0.0)) -> tuple[Any, Any, Any, Any]:
    """Returns pre-activations and activities of both layers, `(z1, h1, z2, output)`."""
    z1 = x @ params[0]["w"] + params[0]["b"] + noise[0]
    h1 = jax.nn.sigmoid(z1)
    z2 = h1 @ params[1]["w"] + params[1]["b"] + noise[1]
    return z1, h1, z2, jax.nn.sigmoid(z2)


def losses(output: Any, y: Any) -> Any:
    """Returns the squared error of each example."""
    return jnp.sum((output - y) ** 2, axis=1)


def outer_products(x: Any, h1: Any, delta1: Any, delta2: Any) -> Layers:
    """Returns gradients from the errors of the pre-activations."""
    return [{"w": x.T @ delta1, "b": delta1.sum(0)}, {"w": h1.T @ delta2, "b": delta2.sum(0)}]


def _through(carrier: Any, params: Layers, x: Any, y: Any, from_output: bool = False) -> Estimate:
    """Returns gradients if the error reaches the hidden layer through the weights `carrier`."""
    _, h1, _, output = forward(params, x)
    error = 2 * (output - y) / len(x)
    delta2 = error * output * (1 - output)
    delta1 = ((error if from_output else delta2) @ carrier.T) * h1 * (1 - h1)
    return losses(output, y).mean(), outer_products(x, h1, delta1, delta2)


def backprop(key: Any, params: Layers, feedback: Layers, x: Any, y: Any, draw: Any) -> Estimate:
    """Backprop: the exact gradient."""
    return _through(params[1]["w"], params, x, y)


def feedback_alignment(key: Any, params: Layers, feedback: Layers, x: Any, y: Any, draw: Any) -> Estimate:
    """Feedback alignment: the error passes back through fixed weights."""
    return _through(feedback[1]["w"], params, x, y)


def direct_feedback_alignment(
    key: Any, params: Layers, feedback: Layers, x: Any, y: Any, draw: Any
) -> Estimate:
    """Direct feedback alignment: the output error is sent to the hidden layer through fixed weights."""
    return _through(feedback[1]["w"], params, x, y, from_output=True)


def _two_runs(key: Any, params: Layers, x: Any, y: Any, draw: Any) -> tuple[Any, Any, Any, Any]:
    """Returns noise on the units, a clean and a noisy run, and `(losses, change of losses / batch size)`."""
    keys = jax.random.split(key)
    noise = [SIGMA * draw(k, (len(x), layer["w"].shape[1])) for k, layer in zip(keys, params, strict=True)]
    clean, noisy = forward(params, x), forward(params, x, noise)
    before = losses(clean[3], y)
    return noise, clean, noisy, (before, (losses(noisy[3], y) - before)[:, None] / len(x))


def node_perturbation(key: Any, params: Layers, feedback: Layers, x: Any, y: Any, draw: Any) -> Estimate:
    """Node perturbation: the change of each loss times the noise of the units."""
    noise, clean, _, (before, change) = _two_runs(key, params, x, y, draw)
    factor = change / SIGMA**2
    return before.mean(), outer_products(x, clean[1], factor * noise[0], factor * noise[1])


def node_perturbation_activity(
    key: Any, params: Layers, feedback: Layers, x: Any, y: Any, draw: Any
) -> Estimate:
    """Activity-based node perturbation: `units * change of loss * dz / |dz|^2`."""
    _, clean, noisy, (before, change) = _two_runs(key, params, x, y, draw)
    d1, d2 = noisy[0] - clean[0], noisy[2] - clean[2]
    number = d1.shape[1] + d2.shape[1]
    square = jnp.sum(d1**2, axis=1, keepdims=True) + jnp.sum(d2**2, axis=1, keepdims=True)
    factor = number * change / square
    return before.mean(), outer_products(x, clean[1], factor * d1, factor * d2)


def weight_perturbation(key: Any, params: Layers, feedback: Layers, x: Any, y: Any, draw: Any) -> Estimate:
    """Weight perturbation: the change of the mean loss times the noise of the weights."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noise = jax.tree.unflatten(structure, [draw(k, w.shape) for k, w in zip(keys, leaves, strict=True)])
    moved = jax.tree.map(lambda w, n: w + SIGMA * n, params, noise)
    before, after = losses(forward(params, x)[3], y).mean(), losses(forward(moved, x)[3], y).mean()
    return before, jax.tree.map(lambda n: (after - before) / SIGMA * n, noise)


RULES: dict[str, Callable[..., Estimate]] = {
    rule.__name__: rule
    for rule in (
        backprop, feedback_alignment, direct_feedback_alignment, node_perturbation,
        node_perturbation_activity, weight_perturbation,
    )
}  # fmt: skip


def training(rule: Callable[..., Any], draw: Any, draws: int, learning_rate: float) -> Callable[..., Any]:
    """Returns updates in a scan, `(keys, params, feedback, x, y) -> (params, losses)`.

    Each update is along the mean of `draws` estimates.
    """

    def train(keys: Any, params: Layers, feedback: Layers, x: Any, y: Any) -> tuple[Layers, Any]:
        def mean(params: Layers, key: Any) -> Estimate:
            if draws == 1:
                return rule(key, params, feedback, x, y, draw)

            def add(total: Any, key: Any) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, total, rule(key, params, feedback, x, y, draw)), None

            zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
            total, _ = jax.lax.scan(add, zeros, jax.random.split(key, draws))
            return jax.tree.map(lambda each: each / draws, total)

        def update(params: Layers, key: Any) -> tuple[Layers, Any]:
            loss, grads = mean(params, key)
            return jax.tree.map(lambda w, g: w - learning_rate * g, params, grads), loss

        return jax.lax.scan(update, params, keys)

    return train
