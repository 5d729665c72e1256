"""Problems on which gradients are measured: dense and convolutional networks on pooled MNIST images."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import lax_learning as ll
from benchmarks.quality.settings import Setting
from lax_learning.types import Key, Params

LEARNING_RATE = 0.5
"""Learning rate of the backprop updates before measuring."""


class Problem(NamedTuple):
    """Model, per-example loss, and all images `x [images, ...]` with one-hot labels `y [images, 10]`."""

    model: ll.Model
    loss: ll.Loss
    x: Array
    y: Array


def pooled_images(key: Key, source: str, pooled: int) -> tuple[np.ndarray, np.ndarray]:
    """Loads MNIST's training images `[images, side, side]`, averaged over squares of pixels, and labels."""
    data = ll.data.mnist(key, source).train
    side = 28 // pooled
    images = np.asarray(data.x).reshape(-1, side, pooled, side, pooled).mean(axis=(2, 4))
    return images, np.asarray(data.y)


def make_problem(setting: Setting, images: np.ndarray, labels: np.ndarray) -> Problem:
    """Returns the problem of classifying images `[n, side, side]` with one-hot labels `[n, classes]`."""
    side, classes = images.shape[1], labels.shape[1]
    if setting.network == "dense":
        widths = (side * side, *(setting.width,) * setting.depth, classes)
        model, x = ll.mlp(widths, activation=jnp.tanh), images.reshape(len(images), -1)
    else:
        channels = (max(1, setting.width // 8),) * setting.depth
        model = ll.convnet((side, side, 1), channels, (classes,), stride=2, activation=jnp.tanh)
        x = images[..., None]
    return Problem(model, ll.softmax_cross_entropy, jnp.asarray(x), jnp.asarray(labels))


def choose_batch(key: Key, problem: Problem, batch_size: int) -> tuple[Array, Array]:
    """Draws images without replacement, with their labels."""
    chosen = jax.random.choice(key, problem.x.shape[0], (batch_size,), replace=False)
    return problem.x[chosen], problem.y[chosen]


def weights_after(
    key: Key, problem: Problem, exact: ll.Rule, params: Params, updates: Array, batch_size: int
) -> Params:
    """Returns params after backprop updates on batches drawn with replacement; their number may be traced."""

    def update(t: Array, params: Params) -> Params:
        chosen = jax.random.randint(jax.random.fold_in(key, t), (batch_size,), 0, problem.x.shape[0])
        _, grads, _ = exact.value_and_grad(key, params, (), problem.x[chosen], problem.y[chosen])
        return jax.tree.map(lambda w, g: w - LEARNING_RATE * g, params, grads)

    return jax.lax.fori_loop(0, updates, update, params)
