"""Networks of the microlearning experiment, each with its loss and its format of images."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import glorot_uniform
from jaxtyping import Array

import lax_learning as ll
from experiments.microlearning.config import Config

TUTORIAL_INIT = jax.nn.initializers.normal(0.1)


class Problem(NamedTuple):
    """A network, its loss, and its formats of images `[batch, 784]` in 0..1 and labels `[batch, 10]`."""

    model: ll.Model
    loss: ll.Loss
    see: Callable[[Array], Array]
    targets: Callable[[Array], Array] = lambda labels: labels
    accuracy: Callable[[Array, Array], Array] = ll.accuracy


def _dense(hidden: tuple[int, ...]) -> Problem:
    """The tutorial's network: sigmoid layers, with weights and biases drawn from N(0, 0.1^2).

    The last sigmoid is part of the loss, so that direct feedback carries the error at its input, `dL/dz`.
    """
    init = TUTORIAL_INIT
    model = ll.mlp((784, *hidden, 10), activation=jax.nn.sigmoid, w_init=init, b_init=init)
    return Problem(model, lambda z, y: ll.squared_error(jax.nn.sigmoid(z), y), lambda images: images)


def _rows(images: Array) -> Array:
    """Returns images as sequences of rows `[batch, 28, 28]`, with MNIST's pixels at mean 0 and variance 1."""
    return ((images - 0.1307) / 0.3081).reshape(-1, 28, 28)


def _convolutional(hidden: tuple[int, ...]) -> Problem:
    """BioTorch's LeNet: three 5 x 5 convolutions, the first two with pooling, and dense layers."""
    options = {"kernel": 5, "pool": (2, 2, 1), "padding": "VALID", "w_init": glorot_uniform()}
    model = ll.convnet((32, 32, 1), hidden[:3], (*hidden[3:], 10), **options)

    def see(images: Array) -> Array:
        return jax.image.resize(_rows(images)[..., None], (len(images), 32, 32, 1), "bilinear")

    return Problem(model, ll.softmax_cross_entropy, see)


def _leaky(hidden: tuple[int, ...]) -> Problem:
    """A layer of leaky units that reads an image row by row, with a loss at the last row only."""
    model = ll.online.leaky_rnn((28, *hidden, 10), alpha=0.2)

    def targets(labels: Array) -> Array:
        # For targets of zeros, the cross-entropy and its derivative are zero.
        return jnp.zeros((len(labels), 28, 10), labels.dtype).at[:, -1].set(labels)

    def accuracy(output: Array, y: Array) -> Array:
        return ll.accuracy(output[:, -1], y[:, -1])

    return Problem(model, ll.softmax_cross_entropy, _rows, targets, accuracy)


PROBLEMS: dict[str, Callable[[tuple[int, ...]], Problem]] = {
    "dense": _dense,
    "convolutional": _convolutional,
    "recurrent": lambda hidden: Problem(ll.rnn((28, *hidden, 10)), ll.softmax_cross_entropy, _rows),
    "leaky": _leaky,
}


def make_problem(config: Config) -> Problem:
    """Returns the network of the configuration, with its loss."""
    return PROBLEMS[config.network](config.widths)


def seen_by(problem: Problem, data: ll.data.Splits) -> ll.data.Splits:
    """Converts all images to the format of the network, and all labels to that of the loss."""
    parts = (tuple(map(jnp.asarray, part)) for part in data)
    return ll.data.Splits(*(ll.data.Dataset(problem.see(x), problem.targets(y)) for x, y in parts))
