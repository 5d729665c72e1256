"""The networks of the microlearning experiment: each with its loss, and what it makes of an image."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import glorot_uniform

import lax_learning as ll
from experiments.microlearning.config import Config

TUTORIAL_INIT = jax.nn.initializers.normal(0.1)


class Problem(NamedTuple):
    """A network and what it learns.

    Fields:
      model: the network.
      loss: per-example loss.
      see: images `[batch, 784]` in 0..1 as the network takes them.
    """

    model: ll.Model
    loss: ll.Loss
    see: Callable[[jax.Array], jax.Array]


def _dense(hidden: tuple[int, ...]) -> Problem:
    """The tutorial's: sigmoid on every layer, weights and biases from N(0, 0.1^2).

    The last sigmoid is part of the loss: direct feedback carries the error of the pre-activations, `dL/dz`.
    """
    init = TUTORIAL_INIT
    model = ll.mlp((784, *hidden, 10), activation=jax.nn.sigmoid, w_init=init, b_init=init)
    return Problem(model, lambda z, y: ll.squared_error(jax.nn.sigmoid(z), y), lambda images: images)


def _standardised(images: jax.Array) -> jax.Array:
    """Of mean 0 and variance 1 over the pixels of MNIST."""
    return (images - 0.1307) / 0.3081


def _convolutional(hidden: tuple[int, ...]) -> Problem:
    """BioTorch's LeNet: three kernels of 5 x 5, two of them pooled, and dense layers on top."""
    model = ll.convnet(
        (32, 32, 1), hidden[:3], (*hidden[3:], 10),
        kernel=5, pool=(2, 2, 1), padding="VALID", w_init=glorot_uniform(),
    )  # fmt: skip

    def see(images: jax.Array) -> jax.Array:
        images = _standardised(images).reshape(-1, 28, 28, 1)
        return jax.image.resize(images, (len(images), 32, 32, 1), "bilinear")

    return Problem(model, ll.softmax_cross_entropy, see)


def _recurrent(hidden: tuple[int, ...]) -> Problem:
    """Recurrent layers that read an image row by row, and classify it from their last state."""
    model = ll.rnn((28, *hidden, 10))
    return Problem(model, ll.softmax_cross_entropy, lambda images: _standardised(images).reshape(-1, 28, 28))


PROBLEMS: dict[str, Callable[[tuple[int, ...]], Problem]] = {
    "dense": _dense,
    "convolutional": _convolutional,
    "recurrent": _recurrent,
}


def make_problem(config: Config) -> Problem:
    """The network of the configuration, with its loss."""
    return PROBLEMS[config.network](config.widths)


def seen_by(problem: Problem, data: ll.data.Splits) -> ll.data.Splits:
    """All images as the network takes them."""
    return ll.data.Splits(*(ll.data.Dataset(problem.see(jnp.asarray(x)), jnp.asarray(y)) for x, y in data))
