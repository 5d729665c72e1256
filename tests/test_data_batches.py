"""The batch schedule: epochs are permutations, runs resume, seeds do not touch each other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lax_learning.data import batches
from tests.compare import slow_but, uses
from tests.refusal import refusals

KEY = jax.random.key(0)


@partial(jax.jit, static_argnums=(0, 2))
def run(schedule, key, num_steps):
    return jax.lax.scan(schedule.next, schedule.init(key), jnp.arange(num_steps))[1]


SIZES = [(12, 4), (12, 12), (14, 4), (7, 1), (1, 1)]


@pytest.mark.parametrize(("num_examples", "batch_size"), slow_but([(14, 4), (12, 12)], SIZES))
def test_epoch_visits_each_example_at_most_once(num_examples, batch_size):
    per_epoch = num_examples // batch_size
    indices = run(batches(num_examples, batch_size), KEY, 5 * per_epoch)
    assert indices.shape == (5 * per_epoch, batch_size) and indices.dtype == jnp.int32
    for epoch in np.asarray(indices).reshape(5, per_epoch * batch_size):
        assert len(set(epoch.tolist())) == per_epoch * batch_size
        assert epoch.min() >= 0 and epoch.max() < num_examples


def test_order_is_the_documented_one():
    """From the first step on, which may be any of the first epoch; epochs leave out different examples."""
    schedule, epochs = batches(14, 4), []
    indices = run(schedule, KEY, 6)
    for epoch in range(2):
        epochs.append(jax.random.permutation(jax.random.fold_in(KEY, epoch), 14)[:12])
        np.testing.assert_array_equal(indices[3 * epoch : 3 * epoch + 3], epochs[-1].reshape(3, 4))
    assert set(epochs[0].tolist()) != set(epochs[1].tolist())
    np.testing.assert_array_equal(schedule.next(schedule.init(KEY), 2)[1], indices[2])


@pytest.mark.parametrize("chunk", slow_but([2], [1, 2, 5]))  # across, inside and at the end of an epoch of 3
def test_chunks_equal_the_whole(chunk):
    schedule = batches(10, 3)
    advance = jax.jit(lambda state, start: jax.lax.scan(schedule.next, state, start + jnp.arange(chunk)))
    state, parts = schedule.init(KEY), []
    for start in range(0, 20, chunk):
        state, indices = advance(state, start)
        parts.append(indices)
    np.testing.assert_array_equal(jnp.concatenate(parts), run(schedule, KEY, 20))


def test_seeds_do_not_touch_each_other():
    schedule, keys = batches(10, 3), jax.random.split(KEY, 4)
    together = jax.jit(jax.vmap(lambda key: run(schedule, key, 8)))(keys)
    np.testing.assert_array_equal(together, jnp.stack([run(schedule, key, 8) for key in keys]))
    assert len({each.tobytes() for each in np.asarray(together)}) == 4


def test_under_vmap_permutations_are_drawn_only_in_a_conditional():
    schedule = batches(10, 3)
    states = jax.vmap(schedule.init)(jax.random.split(KEY, 4))
    jaxpr = jax.make_jaxpr(jax.vmap(schedule.next, (0, None)))(states, 5)
    for primitive in ("sort", "random_bits", "random_fold_in"):
        found = list(uses(jaxpr.jaxpr, primitive))
        assert found and all(found), primitive


test_refuses = refusals(
    values={
        "num_examples: expected at least 1, got 0": lambda: batches(0, 1),
        "batch_size: expected at least 1, got 0": lambda: batches(10, 0),
        r"batch_size: expected at most num_examples \(10\), got 11": lambda: batches(10, 11),
    },
    types={
        "num_examples": lambda: batches(10.0, 2),  # pyright: ignore[reportArgumentType]
        "batch_size": lambda: batches(10, True),
    },
)
