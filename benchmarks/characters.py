"""Character-level language modelling of the text that ships with Python, with a small transformer.

The transformer is ordinary Linen code, with its layers in a scan.
"""

import os
import pydoc_data.topics
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen

import lax_learning as ll

CONTEXT, WIDTH, HEADS, LAYERS, SYMBOLS = 8, 48, 4, 2, 64


class Text(NamedTuple):
    """Characters as indices into `symbols`; the last symbol stands for all rare characters."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    symbols: str


def read_text() -> Text:
    """Reads Python's licence and documentation in lower case, without repeated paragraphs.

    One paragraph in ten is held out for validation, and another one for testing.
    """
    licences = [path.read_text() for path in sorted(Path(os.__file__).parent.glob("LICENSE*"))]
    pages = [*licences, *pydoc_data.topics.topics.values()]
    each_once = dict.fromkeys(" ".join(p.split()).lower() for page in pages for p in page.split("\n\n"))
    paragraphs = [paragraph for paragraph in each_once if paragraph]
    train = "\n".join(paragraph for i, paragraph in enumerate(paragraphs) if i % 5)
    found, counts = np.unique(list(train), return_counts=True)
    symbols = "".join(found[np.argsort(-counts, kind="stable")][: SYMBOLS - 1]) + "\N{MIDDLE DOT}"
    index = {symbol: i for i, symbol in enumerate(symbols)}

    def indices(part: str) -> np.ndarray:
        return np.array([index.get(character, SYMBOLS - 1) for character in part])

    validation, test = ("\n".join(paragraphs[start::10]) for start in (0, 5))
    return Text(indices(train), indices(validation), indices(test), symbols)


def entropies(train: np.ndarray, held_out: np.ndarray) -> tuple[float, float]:
    """Returns bits per held-out character of unigram and bigram models of the training text.

    One is added to the count of every character. The counts of the successors of a character are smoothed by
    one more successor, distributed as in the unigram model.
    """
    counts = np.bincount(train, minlength=SYMBOLS) + 1.0
    single = counts / counts.sum()
    pairs = np.tile(single, (SYMBOLS, 1))
    np.add.at(pairs, (train[:-1], train[1:]), 1)
    pairs /= pairs.sum(axis=1, keepdims=True)
    of_pairs = pairs[held_out[:-1], held_out[1:]]
    return -np.log2(single[held_out[1:]]).mean(), -np.log2(of_pairs).mean()


def windows(characters: np.ndarray) -> ll.data.Dataset:
    """Returns adjacent windows, and the next character at each of their positions."""
    number = (len(characters) - 1) // CONTEXT
    x, y = (jnp.asarray(characters[i : i + number * CONTEXT].reshape(number, CONTEXT)) for i in (0, 1))
    return ll.data.Dataset(x, y)


class Block(linen.Module):
    """Causal attention and a perceptron, each a residual branch that is initially zero."""

    @linen.compact
    def __call__(self, x: Any, _: Any = None) -> tuple[Any, None]:
        length, width = x.shape[-2:]
        h = linen.LayerNorm(use_bias=False, use_scale=False)(x)
        q, k, v = (linen.DenseGeneral((HEADS, width // HEADS), name=name)(h) for name in "qkv")
        scores = jnp.einsum("...qhd,...khd->...hqk", q, k) / (width // HEADS) ** 0.5
        weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -1e9))
        read = jnp.einsum("...hqk,...khd->...qhd", weights, v)
        x = x + linen.DenseGeneral(width, axis=(-2, -1), kernel_init=linen.initializers.zeros)(read)
        h = linen.LayerNorm(use_bias=False, use_scale=False)(x)
        h = linen.gelu(linen.Dense(4 * width)(h))
        return x + linen.Dense(width, kernel_init=linen.initializers.zeros)(h), None


class Transformer(linen.Module):
    """Logits of the next character, `[..., position, symbol]`, at every position of a window."""

    @linen.compact
    def __call__(self, characters: Any) -> Any:
        normal = linen.initializers.normal
        x = linen.Embed(SYMBOLS, WIDTH, embedding_init=normal(1.0))(characters)
        x = x + self.param("positions", normal(1.0), (characters.shape[-1], WIDTH))
        stack = linen.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS)
        x, _ = stack()(x, None)
        x = linen.LayerNorm(use_bias=False, use_scale=False)(x)
        return linen.Dense(SYMBOLS, kernel_init=normal(0.01))(x)


def bits(output: Any, y: Any) -> Any:
    """Returns the loss, the bits per character of every window."""
    return optax.softmax_cross_entropy_with_integer_labels(output, y).mean(axis=-1) / jnp.log(2)


def language_model() -> ll.Model:
    """Returns the transformer as a model whose `init` takes only a key."""
    net = Transformer()
    return ll.Model(net.apply, lambda key: net.init(key, jnp.zeros((1, CONTEXT), int)))
