"""Tasks of memory: what is drawn has the documented shapes, targets and odds."""

# pyright: reportArgumentType=false

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lax_learning import data
from tests.refusal import refusals

KEY = jax.random.key(0)
TASKS = {
    "delayed_match": (data.delayed_match, (14, 2, 2), 1),
    "copy_memory": (data.copy_memory, (16, 5, 4), 3),
    "cue_accumulation": (data.cue_accumulation, (33, 3, 2), 1),
}


@pytest.mark.parametrize("name", TASKS)
def test_shapes_masks_and_dtypes_of_many_keys_side_by_side(name):
    draw, (steps, features, classes), last = TASKS[name]
    draw, keys = partial(draw, num_examples=6, dtype=jnp.bfloat16), jax.random.split(KEY, 2)
    together, (x, y, mask) = jax.jit(jax.vmap(draw))(keys), jax.jit(draw)(keys[1])
    for found, alone in zip(together, (x, y, mask), strict=True):
        np.testing.assert_array_equal(found[1], alone)
    assert (together.x[0] != together.x[1]).any()
    assert x.shape == (6, steps, features) and y.shape == (6, steps, classes) and mask.shape == (6, steps)
    assert x.dtype == y.dtype == jnp.bfloat16 and mask.dtype == bool
    assert set(np.unique(x.sum(axis=-1)).tolist()) == {0.0, 1.0}  # one input at a time, or none
    np.testing.assert_array_equal(mask[0], np.arange(steps) >= steps - last)
    np.testing.assert_array_equal(y.sum(axis=-1), mask)  # one-hot where a step counts, zeros elsewhere


def drawn(draw, number, **options):
    return map(np.asarray, jax.jit(partial(draw, num_examples=number, **options))(KEY))


def test_a_match_is_the_same_symbol_behind_the_delay():
    number, symbols = 6000, 3
    x, y, _ = drawn(data.delayed_match, number, num_symbols=symbols, duration=3, delay=4)
    assert (x[:, :3] == x[:, :1]).all() and (x[:, -3:] == x[:, -1:]).all() and not x[:, 3:7].any()
    first, second = x[:, 0].argmax(axis=-1), x[:, -1].argmax(axis=-1)
    np.testing.assert_array_equal(y[:, -1].argmax(axis=-1), first == second)
    # matches: 1/2; each symbol first and last: 1/3, and each of the 6 pairs that differ: 1/12
    found = [((first == second).mean(), 0.5)]
    found += [((symbol == i).mean(), 1 / 3) for symbol in (first, second) for i in range(3)]
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    found += [(((first == i) & (second == j)).mean(), 1 / 12) for i, j in pairs]
    for share, odds in found:
        assert abs(share - odds) < 5 * (odds * (1 - odds) / number) ** 0.5


def test_symbols_are_to_come_in_the_same_order():
    x, y, _ = drawn(data.copy_memory, 3000, num_symbols=3, length=4, delay=2)
    assert x.shape == (3000, 10, 4) and not x[:, 4:6].any()
    assert (x[:, 6:, 3] == 1).all() and not x[:, :4, 3].any()
    np.testing.assert_array_equal(y[:, 6:], x[:, :4, :3])
    assert (np.abs(x[:, :4, :3].mean(axis=0) - 1 / 3) < 5 * (2 / 9 / 3000) ** 0.5).all()


def test_the_side_with_more_cues_is_the_class():
    number, cues, bias = 6000, 5, 0.8
    options = {"num_cues": cues, "duration": 2, "pause": 3, "delay": 4, "bias": bias}
    x, y, _ = drawn(data.cue_accumulation, number, **options)
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


every = [draw for draw, _, _ in TASKS.values()]
test_bad_values = refusals(
    values={
        "num_examples: expected at least 1, got 0": [partial(draw, KEY, 0) for draw in every],
        "delay: expected at least 0, got -1": [partial(draw, KEY, 2, delay=-1) for draw in every],
        "num_symbols: expected at least 2": [partial(draw, KEY, 2, num_symbols=1) for draw in every[:2]],
        "num_cues: expected an odd number": lambda: data.cue_accumulation(KEY, 2, num_cues=4),
        "bias: expected a number in 0..1": lambda: data.cue_accumulation(KEY, 2, bias=1.2),
        "length: expected at least 1": lambda: data.copy_memory(KEY, 2, length=0),
        "num_examples, steps, num_.*: expected arrays": [partial(draw, KEY, 10**9) for draw in every],
    },
    types={
        "key: expected one key": [partial(draw, 0, 2) for draw in every],
        "dtype: expected a floating-point dtype": [partial(draw, KEY, 2, dtype=int) for draw in every],
    },
)
