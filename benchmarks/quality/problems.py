"""The problems on which gradients are measured: pooled MNIST images, dense and convolutional networks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import lax_learning as ll
from benchmarks.quality.settings import Setting
from lax_learning.types import Key, Params

LEARNING_RATE = 0.5
"""Of the updates by backprop before measuring: plain gradient descent on the mean loss."""


class Problem(NamedTuple):
    """A model, its loss and the images.

    Fields:
      model: the model.
      loss: per-example loss.
      x: all images, `[images, ...]` as the model takes them, in 0..1.
      y: their labels, `[images, 10]`, one-hot.
    """

    model: ll.Model
    loss: ll.Loss
    x: Array
    y: Array


def pooled_images(key: Key, source: str, pooled: int) -> tuple[np.ndarray, np.ndarray]:
    """MNIST's training images, `[images, side, side]`, each pixel the mean of `pooled` x `pooled`; labels."""
    data = ll.data.mnist(key, source).train
    side = 28 // pooled
    images = np.asarray(data.x).reshape(-1, side, pooled, side, pooled).mean(axis=(2, 4))
    return images, np.asarray(data.y)


def make_problem(setting: Setting, images: np.ndarray, labels: np.ndarray) -> Problem:
    """The network of a setting, classifying images by a softmax.

    Args:
      setting: width, depth and kind of the network.
      images: `[images, side, side]`.
      labels: `[images, classes]`, one-hot.

    Returns:
      The problem.
    """
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
    """As many different images, and their labels."""
    chosen = jax.random.choice(key, problem.x.shape[0], (batch_size,), replace=False)
    return problem.x[chosen], problem.y[chosen]


def weights_after(
    key: Key, problem: Problem, exact: ll.Rule, params: Params, updates: Array, batch_size: int
) -> Params:
    """Params after updates by backprop, each on a fresh batch.

    Args:
      key: chooses the batches.
      problem: model, loss and images.
      exact: backprop on them.
      params: where to start.
      updates: number of updates; may be traced.
      batch_size: examples an update.
    """

    def update(t: Array, params: Params) -> Params:
        x, y = _with_replacement(jax.random.fold_in(key, t), problem, batch_size)
        _, grads = exact.value_and_grad(key, params, (), x, y)[:2]
        return jax.tree.map(lambda w, g: w - LEARNING_RATE * g, params, grads)

    return jax.lax.fori_loop(0, updates, update, params)


def _with_replacement(key: Key, problem: Problem, batch_size: int) -> tuple[Array, Array]:
    chosen = jax.random.randint(key, (batch_size,), 0, problem.x.shape[0])
    return problem.x[chosen], problem.y[chosen]
