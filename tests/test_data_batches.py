"""The batch schedule: epochs are permutations, runs resume, seeds do not touch each other."""

from functools import cache, partial

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


SCHEDULE = batches(14, 4)  # three batches an epoch, which leaves two examples out


@cache
def five_epochs():
    return run(SCHEDULE, KEY, 15)


def test_epochs_are_permutations_in_the_documented_order():
    """From the first step on, which may be any of the first epoch; epochs leave out different examples."""
    indices = five_epochs()
    assert indices.shape == (15, 4) and indices.dtype == jnp.int32
    epochs = np.asarray(indices).reshape(5, 12)
    for number, epoch in enumerate(epochs):
        order = jax.random.permutation(jax.random.fold_in(KEY, number), 14)
        np.testing.assert_array_equal(epoch, order[:12])
    assert set(epochs[0].tolist()) != set(epochs[1].tolist())
    np.testing.assert_array_equal(SCHEDULE.next(SCHEDULE.init(KEY), 2)[1], indices[2])


@pytest.mark.parametrize(("num_examples", "batch_size"), slow_but([(12, 12)], [(12, 12), (7, 1), (1, 1)]))
def test_an_epoch_may_be_one_batch_and_a_batch_one_example(num_examples, batch_size):
    epochs = run(batches(num_examples, batch_size), KEY, 3 * num_examples // batch_size)
    for epoch in np.asarray(epochs).reshape(3, num_examples):
        assert sorted(epoch.tolist()) == list(range(num_examples))


def test_chunks_equal_the_whole():
    """Of two steps: within an epoch, at its end and across it."""
    advance = jax.jit(lambda state, start: jax.lax.scan(SCHEDULE.next, state, start + jnp.arange(2)))
    state, parts = SCHEDULE.init(KEY), []
    for start in range(0, 14, 2):
        state, indices = advance(state, start)
        parts.append(indices)
    np.testing.assert_array_equal(np.concatenate(parts), five_epochs()[:14])


def test_seeds_do_not_touch_each_other():
    keys = jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(lambda key: run(SCHEDULE, key, 15)))(keys)
    np.testing.assert_array_equal(together, np.stack([run(SCHEDULE, key, 15) for key in keys]))
    assert len({each.tobytes() for each in np.asarray(together)}) == 3


def test_under_vmap_permutations_are_drawn_only_in_a_conditional():
    states = jax.eval_shape(jax.vmap(SCHEDULE.init), jax.random.split(KEY, 4))
    jaxpr = jax.make_jaxpr(jax.vmap(SCHEDULE.next, (0, None)))(states, 5)
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
