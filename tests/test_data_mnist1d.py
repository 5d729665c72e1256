"""MNIST-1D against its recipe in NumPy and SciPy, and the accuracies of its paper."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from scipy.interpolate import interp1d
from scipy.ndimage import gaussian_filter1d

import lax_learning as ll
from lax_learning.data._mnist1d import TEMPLATES, _draws, _example
from tests.refusal import refusals

KEY = jax.random.key(1)


def by_recipe(draws: Any, label: int) -> np.ndarray:
    """Pad, stretch, scale, move, noise, shear, sample."""

    def stretched(x: np.ndarray, points: int) -> np.ndarray:
        return interp1d(np.linspace(0, 1, len(x)), x)(np.linspace(0, 1, points))

    curve = (TEMPLATES[label] - TEMPLATES[label].mean()) / TEMPLATES[label].std()
    curve = (curve - curve[0]) / 6
    x = stretched(np.concatenate([curve + 1e-8, np.zeros(int(draws.padding))]), 72)
    x = np.roll(x * float(draws.scale), int(draws.shift))
    smooth = gaussian_filter1d(np.asarray(draws.smooth, np.float64), 2)
    x = np.where(x != 0, x, smooth) + np.asarray(draws.noise, np.float64)
    x = x - float(draws.shear) * np.linspace(-0.5, 0.5, 72)
    return stretched(x, 40)


draw, example = jax.jit(jax.vmap(_draws)), jax.jit(_example)


def test_examples_follow_the_recipe() -> None:
    drawn = draw(jax.random.split(KEY, 40))
    for i, padding in enumerate((36, 37, 51, 60)):
        for label in range(10):
            one = jax.tree.map(lambda leaf, at=10 * i + label: np.asarray(leaf)[at], drawn)
            one = one._replace(padding=np.int32(padding))
            # The curve's end is told from 0 by the place where it is; the recipe adds 1e-8 to tell it.
            np.testing.assert_allclose(example(one, label), by_recipe(one, label), atol=2e-6)


def test_draws_have_the_ranges_of_the_recipe() -> None:
    number = 20_000
    drawn = draw(jax.random.split(KEY, number))
    for name, low, high in (("padding", 36, 60), ("shift", 0, 47)):
        values = np.asarray(getattr(drawn, name))
        assert (values.min(), values.max()) == (low, high)
        counts = np.bincount(values - low)
        mean = number / len(counts)
        assert np.abs(counts - mean).max() < 5 * mean**0.5
    for name, low, high in (("scale", 0.8, 1.2), ("shear", -0.375, 0.375)):
        values = np.asarray(getattr(drawn, name))
        assert low <= values.min() < low + 0.001 and high - 0.001 < values.max() <= high
    for name, spread in (("smooth", 0.25), ("noise", 0.02)):
        error = 5 * spread / (2 * 72 * number) ** 0.5
        np.testing.assert_allclose(np.std(getattr(drawn, name)), spread, atol=error)


def test_splits() -> None:
    sizes = (60, 20, 40)
    many = jax.jit(jax.vmap(partial(ll.data.mnist1d, sizes=sizes)))(jax.random.split(KEY, 2))
    splits, other = (jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], many) for i in (0, 1))
    assert tuple(len(part.x) for part in splits) == sizes
    x = np.concatenate([part.x for part in splits])
    np.testing.assert_allclose([x.mean(), x.std()], [0, 1], atol=1e-5)
    assert (np.concatenate([part.y for part in splits]).sum(axis=0) == 12).all()
    assert len(np.unique(x, axis=0)) == 120
    assert not np.allclose(splits.train.x, other.train.x)


test_bad_input = refusals(
    values={
        "^sizes: expected numbers of training, validation and test": [
            lambda: ll.data.mnist1d(KEY, sizes=(3, 4)),
            lambda: ll.data.mnist1d(KEY, sizes=(0, 0, 0)),
        ],
        r"^sizes\[0\]: ": lambda: ll.data.mnist1d(KEY, sizes=(-1, 0, 0)),
    },
    types={"^key: ": lambda: ll.data.mnist1d(3)},  # pyright: ignore[reportArgumentType]
)


class Perceptron(linen.Module):
    """Two hidden layers, the second beside a path around it."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        h = linen.relu(Dense(256)(x))
        return Dense(10)(h + linen.relu(Dense(256)(h)))


class Convolutional(linen.Module):
    """Three strided convolutions."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        h = x[..., None]
        for kernel in (5, 3, 3):
            h = linen.relu(Conv(25, (kernel,), 2, padding=1)(h))
        return Dense(10)(h.reshape(len(x), -1))


# As PyTorch draws them: uniform within one over the root of the number of inputs.
UNIFORM = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
Dense, Conv = partial(linen.Dense, kernel_init=UNIFORM), partial(linen.Conv, kernel_init=UNIFORM)
MODELS: dict[str, tuple[linen.Module, float]] = {
    "logistic": (Dense(10), 0.32),
    "perceptron": (Perceptron(), 0.68),
    "convolutional": (Convolutional(), 0.94),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_accuracies_of_the_paper(with_default_passes: None, name: str) -> None:
    """Its Adam, 4,000 updates of 100 examples, mean over 4 seeds of data and weights: within 3 points."""
    module, published = MODELS[name]
    net: Any = module

    def evaluate(key: Any, params: Any, state: Any, data: Any) -> Any:
        return ll.accuracy(net.apply(params, data.test.x), data.test.y)

    def run(key: Any) -> Any:
        train = ll.make_train(
            ll.backprop(ll.Model(net.apply), ll.softmax_cross_entropy), optax.adam(1e-2),
            init=lambda key: net.init(key, jnp.zeros((1, 40))), num_updates=4_000, batch_size=100,
            evaluate=evaluate, every=250,
        )  # fmt: skip
        data_key, key = jax.random.split(key)
        return jnp.max(train(key, ll.data.mnist1d(data_key)).evaluations)

    accuracy = np.asarray(jax.lax.map(run, jax.random.split(KEY, 4)))
    np.testing.assert_allclose(accuracy.mean(), published, atol=0.03)
