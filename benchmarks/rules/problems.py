"""Problems of the comparison of rules: three data sets, with four models each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen

import lax_learning as ll
from lax_learning.types import Key

LOSS = ll.softmax_cross_entropy


class Data(NamedTuple):
    """Data set whose examples are vectors."""

    load: Callable[[Key, str], ll.data.Splits]  # `(key, source of the digits) -> Splits`
    image: tuple[int, int]  # height and width of an example as an image, for convolutions
    tokens: tuple[int, int]  # number and size of its tokens, for attention
    classes: int  # number of classes


SIZES = (4_000, 1_000, 1_000)
DATA = {
    "digits": Data(ll.data.mnist, (28, 28), (28, 28), 10),
    "mnist1d": Data(lambda key, source: ll.data.mnist1d(key, sizes=SIZES), (40, 1), (8, 5), 10),
    "half_space": Data(lambda key, source: ll.data.half_space(key, 16, sizes=SIZES), (4, 4), (4, 4), 2),
}


class Attention(linen.Module):
    """Residual attention over embedded tokens, followed by a mean over tokens and a readout."""

    classes: int

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        places = self.param("places", linen.initializers.normal(0.1), (x.shape[1], 32))
        x = linen.Dense(32, name="embedding")(x) + places
        x = x + linen.MultiHeadDotProductAttention(num_heads=1, name="attention")(x)
        return linen.Dense(self.classes, name="readout")(linen.relu(x).mean(axis=1))


class BatchNorm(linen.Module):
    """Residual layer with batch normalisation, by the statistics of the batch in both training and test."""

    classes: int

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.relu(linen.Dense(64, name="embedding")(x))
        normed = (z := linen.Dense(64, name="hidden")(x)) - z.mean(axis=0)
        x = x + linen.relu(normed * jax.lax.rsqrt(z.var(axis=0) + 1e-5))
        return linen.Dense(self.classes, name="readout")(x)


def _dense(data: Data) -> ll.Model:
    return ll.mlp((data.image[0] * data.image[1], 100, data.classes), activation=jax.nn.relu)


def _convolutional(data: Data) -> ll.Model:
    net = ll.convnet((*data.image, 1), (8, 16), (data.classes,), kernel=5, stride=2)
    return ll.Model(lambda params, x: net.apply(params, x.reshape(-1, *data.image, 1)), net.init)


def _linen(module: linen.Module, shape: tuple[int, ...]) -> ll.Model:
    """Model of a Linen module on inputs of a shape; params are keyed by the names of its layers."""

    def init(key: Key) -> Any:
        return module.init(key, jnp.zeros((2, *shape)))["params"]

    return ll.Model(lambda params, x: module.apply({"params": params}, x.reshape(-1, *shape)), init)


MODELS: dict[str, Callable[[Data], ll.Model]] = {
    "dense": _dense,
    "convolutional": _convolutional,
    "attention": lambda data: _linen(Attention(data.classes), data.tokens),
    "batch_norm": lambda data: _linen(BatchNorm(data.classes), (data.image[0] * data.image[1],)),
}


class Problem(NamedTuple):
    """Name of a data set, and a model for it."""

    data: str
    model: ll.Model


PROBLEMS = {f"{data}-{model}": Problem(data, MODELS[model](DATA[data])) for model in MODELS for data in DATA}
"""All combinations of data sets and models, by `DATA-MODEL`."""
