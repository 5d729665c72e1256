"""Data that is drawn: batches of a run, tasks of memory, and MNIST-1D against its recipe and its paper."""

# pyright: reportArgumentType=false

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.key_reuse._core import check_key_reuse
from scipy.interpolate import interp1d
from scipy.ndimage import gaussian_filter1d

import lax_learning as ll
from lax_learning import data
from lax_learning.data import batches
from lax_learning.data._mnist1d import TEMPLATES, _draws, _example
from tests.compare import uses
from tests.refusal import refusals

KEY = jax.random.key(0)
SCHEDULE = batches(14, 4)  # three batches an epoch, which leaves two examples out


def test_epochs_are_permutations_in_the_documented_order():
    """Of all seeds side by side, and in chunks of two steps: within an epoch, at its end and across it."""
    keys = jax.random.split(KEY, 3)

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None))
    @partial(jax.vmap, in_axes=(None, 0))
    def orders(key, epoch):
        return jax.random.permutation(jax.random.fold_in(key, epoch), 14)[:12]

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None))
    def advance(state, steps):
        return jax.lax.scan(SCHEDULE.next, state, steps)

    start = state = jax.jit(jax.vmap(SCHEDULE.init))(keys)
    parts = []
    for step in range(0, 14, 2):
        state, indices = advance(state, step + np.arange(2))
        parts.append(indices)
    found, expected = np.concatenate(parts, axis=1), np.asarray(orders(keys, np.arange(5)))
    assert found.shape == (3, 14, 4) and found.dtype == np.int32
    np.testing.assert_array_equal(found.reshape(3, -1), expected.reshape(3, -1)[:, : 14 * 4])
    # Each leaves out other examples, and the first step may be any of the first epoch.
    assert len({frozenset(each.tolist()) for each in expected.reshape(15, 12)}) > 5
    np.testing.assert_array_equal(advance(start, np.arange(2, 4))[1], found[:, 2:4])


def test_under_vmap_permutations_are_drawn_only_in_a_conditional():
    states = jax.eval_shape(jax.vmap(SCHEDULE.init), jax.random.split(KEY, 4))
    jaxpr = jax.make_jaxpr(jax.vmap(SCHEDULE.next, (0, None)))(states, 5)
    for primitive in ("sort", "random_bits", "random_fold_in"):
        found = list(uses(jaxpr.jaxpr, primitive))
        assert found and all(found), primitive


def of_many(draw, number, last, **options):
    """Inputs, one at a time or none, and targets, one-hot at the last steps and zeros before."""
    x, y, mask = jax.jit(partial(draw, num_examples=number, dtype=jnp.bfloat16, **options))(KEY)
    assert x.dtype == y.dtype == jnp.bfloat16 and mask.dtype == bool and mask.shape == x.shape[:2]
    x, y, mask = (np.asarray(each, np.float32) for each in (x, y, mask))
    assert set(np.unique(x.sum(axis=-1)).tolist()) == {0.0, 1.0}
    np.testing.assert_array_equal(mask[0], np.arange(x.shape[1]) >= x.shape[1] - last)
    np.testing.assert_array_equal(y.sum(axis=-1), mask)
    return x, y


def test_a_match_is_the_same_symbol_behind_the_delay():
    number = 6000
    x, y = of_many(data.delayed_match, number, 1, num_symbols=3, duration=3, delay=4)
    assert x.shape == (number, 10, 3) and not x[:, 3:7].any()
    assert (x[:, :3] == x[:, :1]).all() and (x[:, -3:] == x[:, -1:]).all()
    first, second = x[:, 0].argmax(axis=-1), x[:, -1].argmax(axis=-1)
    np.testing.assert_array_equal(y[:, -1].argmax(axis=-1), first == second)
    # matches: 1/2; each symbol first and last: 1/3, and each of the 6 pairs that differ: 1/12
    pairs = np.histogram2d(first, second, bins=np.arange(4) - 0.5)[0] / number
    shares = [np.trace(pairs), *pairs.sum(axis=0), *pairs.sum(axis=1), *pairs[~np.eye(3, dtype=bool)]]
    odds = np.repeat([1 / 2, 1 / 3, 1 / 12], [1, 6, 6])
    assert (np.abs(shares - odds) < 5 * np.sqrt(odds * (1 - odds) / number)).all()


def test_symbols_are_to_come_in_the_same_order():
    x, y = of_many(data.copy_memory, 3000, 4, num_symbols=3, length=4, delay=2)
    assert x.shape == (3000, 10, 4) and not x[:, 4:6].any()
    assert (x[:, 6:, 3] == 1).all() and not x[:, :4, 3].any()
    np.testing.assert_array_equal(y[:, 6:], x[:, :4, :3])
    assert (np.abs(x[:, :4, :3].mean(axis=0) - 1 / 3) < 5 * (2 / 9 / 3000) ** 0.5).all()


def test_the_side_with_more_cues_is_the_class():
    number, cues, bias = 6000, 5, 0.8
    options = {"num_cues": cues, "duration": 2, "pause": 3, "delay": 4, "bias": bias}
    x, y = of_many(data.cue_accumulation, number, 1, **options)
    assert x.shape == (number, 31, 3) and not x[:, 25:29].any()
    assert (x[:, 29:, 2] == 1).all() and not x[:, :25, 2].any()
    shown = x[:, :25].reshape(number, cues, 5, 3)
    assert (shown[:, :, 0] == shown[:, :, 1]).all() and not shown[:, :, 2:].any()
    right = shown[:, :, 0, 1].sum(axis=1)
    np.testing.assert_array_equal(y[:, -1].argmax(axis=-1), right > cues / 2)
    # k of 5 cues on the right: the mean of two binomial distributions
    k, choose = np.arange(6), np.array([1, 5, 10, 10, 5, 1])
    odds = choose * (bias**k * (1 - bias) ** (cues - k) + bias ** (cues - k) * (1 - bias) ** k) / 2
    shares = np.bincount(right.astype(int), minlength=cues + 1) / number
    assert (np.abs(shares - odds) < 5 * np.sqrt(odds * (1 - odds) / number)).all()


every = [data.delayed_match, data.copy_memory, data.cue_accumulation]
test_refused = refusals(
    values={
        r"batch_size: expected at most num_examples \(10\), got 11": partial(batches, 10, 11),
        "num_symbols: expected at least 2": [partial(draw, KEY, 2, num_symbols=1) for draw in every[:2]],
        "num_cues: expected an odd number": partial(data.cue_accumulation, KEY, 2, num_cues=4),
        "num_examples, steps, num_.*: expected arrays": [partial(draw, KEY, 10**9) for draw in every],
    },
)


@pytest.mark.parametrize("draw", [*(partial(draw, num_examples=2) for draw in every), data.mnist1d])
def test_no_key_is_consumed_twice(draw):
    check_key_reuse(draw, KEY)


def by_recipe(label, padding, scale, shear, shift, smooth, noise):
    """Pad, stretch, scale, move, noise, shear, sample."""

    def stretched(x, points):
        return interp1d(np.linspace(0, 1, len(x)), x)(np.linspace(0, 1, points))

    curve = (TEMPLATES[label] - TEMPLATES[label].mean()) / TEMPLATES[label].std()
    curve = (curve - curve[0]) / 6
    x = stretched(np.concatenate([curve + 1e-8, np.zeros(padding)]), 72)
    x = np.roll(x * float(scale), shift)
    x = np.where(x != 0, x, gaussian_filter1d(smooth.astype(float), 2)) + noise.astype(float)
    return stretched(x - float(shear) * np.linspace(-0.5, 0.5, 72), 40)


NUMBER = 20_000


@cache
def drawn():
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(_draws))(jax.random.split(KEY, NUMBER)))


def test_examples_follow_the_recipe():
    some = {"label": np.tile(np.arange(10), 4)} | {name: values[:40] for name, values in drawn().items()}
    some["padding"] = np.repeat([36, 37, 51, 60], 10)
    found = jax.jit(jax.vmap(lambda each: _example(**each)))(some)
    expected = [by_recipe(**{name: values[i] for name, values in some.items()}) for i in range(40)]
    # The curve's end is told from 0 by the place where it is; the recipe adds 1e-8 to tell it.
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_draws_have_the_ranges_of_the_recipe():
    for name, low, high in (("padding", 36, 60), ("shift", 0, 47)):
        values = drawn()[name]
        assert (values.min(), values.max()) == (low, high)
        counts, mean = np.bincount(values - low), NUMBER / (high - low + 1)
        assert np.abs(counts - mean).max() < 5 * mean**0.5
    for name, low, high in (("scale", 0.8, 1.2), ("shear", -0.375, 0.375)):
        values = drawn()[name]
        assert low <= values.min() < low + 0.001 and high - 0.001 < values.max() <= high
    for name, spread in (("smooth", 0.25), ("noise", 0.02)):
        error = 5 * spread / (2 * 72 * NUMBER) ** 0.5
        np.testing.assert_allclose(np.std(drawn()[name]), spread, atol=error)


def test_splits_of_mnist1d():
    sizes = (60, 20, 40)
    draw = jax.jit(partial(data.mnist1d, sizes=sizes))
    splits, other = draw(KEY), draw(jax.random.key(1))
    assert tuple(len(part.x) for part in splits) == sizes
    x, y = (np.concatenate([getattr(part, name) for part in splits]) for name in "xy")
    np.testing.assert_allclose([x.mean(), x.std()], [0, 1], atol=1e-5)
    assert (y.sum(axis=0) == 12).all() and len(np.unique(x, axis=0)) == 120
    assert not np.allclose(splits.train.x, other.train.x)


@pytest.mark.slow
def test_logistic_regression_has_the_accuracy_of_the_paper(with_default_passes):
    """32 % by Adam, 4,000 updates of 100 examples, mean over 4 seeds of data and weights: within 3 points."""
    model = ll.mlp((40, 10))
    rule = ll.backprop(model, ll.softmax_cross_entropy)

    def evaluate(key, params, state, splits):
        return ll.accuracy(model.apply(params, splits.test.x), splits.test.y)

    def best(key):
        options = {"num_updates": 4_000, "batch_size": 100, "evaluate": evaluate, "every": 250}
        data_key, key = jax.random.split(key)
        train = ll.make_train(rule, optax.adam(1e-2), init=model.init, **options)
        return jnp.max(train(key, data.mnist1d(data_key)).evaluations)

    accuracies = jax.lax.map(best, jax.random.split(KEY, 4))
    np.testing.assert_allclose(np.mean(accuracies), 0.32, atol=0.03)
