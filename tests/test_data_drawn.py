"""Data that is drawn: batches of a run, tasks of memory, and MNIST-1D against its recipe and its paper."""

# pyright: reportArgumentType=false

from functools import cache, partial
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
from lax_learning import data
from lax_learning.data import batches
from lax_learning.data._mnist1d import TEMPLATES, _draws, _example
from tests.compare import assert_same, uses
from tests.refusal import refusals

KEY = jax.random.key(0)
SCHEDULE = batches(14, 4)  # three batches an epoch, which leaves two examples out


@partial(jax.jit, static_argnums=0)
def run(schedule, state, steps):
    return jax.lax.scan(schedule.next, state, steps)


def test_epochs_are_permutations_in_the_documented_order():
    """Of all seeds side by side, and in chunks of two steps: within an epoch, at its end and across it."""
    keys, parts = jax.random.split(KEY, 3), []

    def order(key, epoch):
        return jax.random.permutation(jax.random.fold_in(key, epoch), 14)[:12]

    of_seeds = jax.vmap(jax.vmap(order, in_axes=(None, 0)), in_axes=(0, None))
    orders = np.asarray(jax.jit(of_seeds)(keys, np.arange(5)))
    start = state = jax.jit(jax.vmap(SCHEDULE.init))(keys)
    advance = jax.vmap(partial(run, SCHEDULE), in_axes=(0, None))
    for step in range(0, 14, 2):
        state, indices = advance(state, step + np.arange(2))
        parts.append(indices)
    found = np.concatenate(parts, axis=1)
    assert found.shape == (3, 14, 4) and found.dtype == np.int32
    np.testing.assert_array_equal(found.reshape(3, -1), orders.reshape(3, -1)[:, : 14 * 4])
    # Each leaves out other examples, and the first step may be any of the first epoch.
    assert len({frozenset(each.tolist()) for each in orders.reshape(15, 12)}) > 5
    np.testing.assert_array_equal(advance(start, np.arange(2, 4))[1], found[:, 2:4])


def test_an_epoch_may_be_one_batch():
    schedule = batches(12, 12)
    _, epochs = run(schedule, schedule.init(KEY), np.arange(3))
    assert (np.sort(epochs) == np.arange(12)).all()


def test_under_vmap_permutations_are_drawn_only_in_a_conditional():
    states = jax.eval_shape(jax.vmap(SCHEDULE.init), jax.random.split(KEY, 4))
    jaxpr = jax.make_jaxpr(jax.vmap(SCHEDULE.next, (0, None)))(states, 5)
    for primitive in ("sort", "random_bits", "random_fold_in"):
        found = list(uses(jaxpr.jaxpr, primitive))
        assert found and all(found), primitive


test_batches_refused = refusals(
    values={r"batch_size: expected at most num_examples \(10\), got 11": partial(batches, 10, 11)}
)


TASKS = {
    data.delayed_match: ((14, 2, 2), 1),
    data.copy_memory: ((16, 5, 4), 3),
    data.cue_accumulation: ((33, 3, 2), 1),
}


@pytest.mark.parametrize("draw", TASKS)
def test_shapes_masks_and_dtypes_of_many_keys_side_by_side(draw):
    (steps, features, classes), last = TASKS[draw]
    draw, keys = partial(draw, num_examples=6, dtype=jnp.bfloat16), jax.random.split(KEY, 2)
    together, alone = jax.jit(lambda keys: (jax.vmap(draw)(keys), draw(keys[1])))(keys)
    assert_same(jax.tree.map(lambda leaf: leaf[1], together), alone)
    assert (together.x[0] != together.x[1]).any()
    x, y, mask = map(np.asarray, alone)
    assert x.shape == (6, steps, features) and y.shape == (6, steps, classes) and mask.shape == (6, steps)
    assert x.dtype == y.dtype == jnp.bfloat16 and mask.dtype == bool
    assert set(np.unique(x.sum(axis=-1)).tolist()) == {0.0, 1.0}  # one input at a time, or none
    np.testing.assert_array_equal(mask[0], np.arange(steps) >= steps - last)
    np.testing.assert_array_equal(y.sum(axis=-1), mask)  # one-hot where a step counts, zeros elsewhere


def draws_of(draw, number, **options):
    return map(np.asarray, jax.jit(partial(draw, num_examples=number, **options))(KEY))


def test_a_match_is_the_same_symbol_behind_the_delay():
    number, symbols = 6000, 3
    x, y, _ = draws_of(data.delayed_match, number, num_symbols=symbols, duration=3, delay=4)
    assert (x[:, :3] == x[:, :1]).all() and (x[:, -3:] == x[:, -1:]).all() and not x[:, 3:7].any()
    first, second = x[:, 0].argmax(axis=-1), x[:, -1].argmax(axis=-1)
    np.testing.assert_array_equal(y[:, -1].argmax(axis=-1), first == second)
    # matches: 1/2; each symbol first and last: 1/3, and each of the 6 pairs that differ: 1/12
    pairs = np.histogram2d(first, second, bins=np.arange(4) - 0.5)[0] / number
    for share, odds in (
        (np.trace(pairs), 1 / 2),
        *((share, 1 / 3) for share in (*pairs.sum(axis=0), *pairs.sum(axis=1))),
        *((share, 1 / 12) for share in pairs[~np.eye(3, dtype=bool)]),
    ):
        assert abs(share - odds) < 5 * (odds * (1 - odds) / number) ** 0.5


def test_symbols_are_to_come_in_the_same_order():
    x, y, _ = draws_of(data.copy_memory, 3000, num_symbols=3, length=4, delay=2)
    assert x.shape == (3000, 10, 4) and not x[:, 4:6].any()
    assert (x[:, 6:, 3] == 1).all() and not x[:, :4, 3].any()
    np.testing.assert_array_equal(y[:, 6:], x[:, :4, :3])
    assert (np.abs(x[:, :4, :3].mean(axis=0) - 1 / 3) < 5 * (2 / 9 / 3000) ** 0.5).all()


def test_the_side_with_more_cues_is_the_class():
    number, cues, bias = 6000, 5, 0.8
    options = {"num_cues": cues, "duration": 2, "pause": 3, "delay": 4, "bias": bias}
    x, y, _ = draws_of(data.cue_accumulation, number, **options)
    assert x.shape == (number, 31, 3) and not x[:, 25:29].any()
    assert (x[:, 29:, 2] == 1).all() and not x[:, :25, 2].any()
    shown = x[:, :25].reshape(number, cues, 5, 3)
    assert (shown[:, :, 0] == shown[:, :, 1]).all() and not shown[:, :, 2:].any()
    right = shown[:, :, 0, 1].sum(axis=1)
    np.testing.assert_array_equal(y[:, -1].argmax(axis=-1), right > cues / 2)
    # k of 5 cues on the right: the mean of two binomial distributions
    choose = np.array([1, 5, 10, 10, 5, 1])
    k = np.arange(cues + 1)
    odds = choose * (bias**k * (1 - bias) ** (cues - k) + bias ** (cues - k) * (1 - bias) ** k) / 2
    shares = np.bincount(right.astype(int), minlength=cues + 1) / number
    assert (np.abs(shares - odds) < 5 * np.sqrt(odds * (1 - odds) / number)).all()


every = list(TASKS)
test_tasks_refused = refusals(
    values={
        "num_symbols: expected at least 2": [partial(draw, KEY, 2, num_symbols=1) for draw in every[:2]],
        "num_cues: expected an odd number": partial(data.cue_accumulation, KEY, 2, num_cues=4),
        "num_examples, steps, num_.*: expected arrays": [partial(draw, KEY, 10**9) for draw in every],
    },
)


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
    return stretched(x - float(draws.shear) * np.linspace(-0.5, 0.5, 72), 40)


NUMBER = 20_000


@cache
def drawn():
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(_draws))(jax.random.split(KEY, NUMBER)))


def test_examples_follow_the_recipe():
    some = jax.tree.map(lambda leaf: leaf[:40], drawn())._replace(padding=np.repeat([36, 37, 51, 60], 10))
    labels = np.tile(np.arange(10), 4)
    found = jax.jit(jax.vmap(_example))(some, labels)
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], some) for i in range(40)]
    # The curve's end is told from 0 by the place where it is; the recipe adds 1e-8 to tell it.
    np.testing.assert_allclose(found, list(map(by_recipe, each, labels)), atol=2e-6)


def test_draws_have_the_ranges_of_the_recipe():
    for name, low, high in (("padding", 36, 60), ("shift", 0, 47)):
        values = getattr(drawn(), name)
        assert (values.min(), values.max()) == (low, high)
        counts, mean = np.bincount(values - low), NUMBER / (high - low + 1)
        assert np.abs(counts - mean).max() < 5 * mean**0.5
    for name, low, high in (("scale", 0.8, 1.2), ("shear", -0.375, 0.375)):
        values = getattr(drawn(), name)
        assert low <= values.min() < low + 0.001 and high - 0.001 < values.max() <= high
    for name, spread in (("smooth", 0.25), ("noise", 0.02)):
        error = 5 * spread / (2 * 72 * NUMBER) ** 0.5
        np.testing.assert_allclose(np.std(getattr(drawn(), name)), spread, atol=error)


def test_splits_of_mnist1d():
    sizes = (60, 20, 40)
    splits = jax.jit(jax.vmap(partial(data.mnist1d, sizes=sizes)))(jax.random.split(KEY, 2))
    assert tuple(part.x.shape[1] for part in splits) == sizes
    x, y = (np.concatenate([np.asarray(getattr(part, name))[0] for part in splits]) for name in "xy")
    np.testing.assert_allclose([x.mean(), x.std()], [0, 1], atol=1e-5)
    assert (y.sum(axis=0) == 12).all() and len(np.unique(x, axis=0)) == 120
    assert not np.allclose(*np.asarray(splits.train.x))


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
