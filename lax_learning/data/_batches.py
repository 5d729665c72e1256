"""Batches of a run: a new random order every epoch, split into batches."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Int32

from lax_learning._arrays import check_counter
from lax_learning._checks import check_count, check_key
from lax_learning.types import Key


class BatchState(NamedTuple):
    """State of the schedule."""

    key: Key  # key of the run, never consumed directly: epoch e draws from fold_in(key, e)
    order: Int32[Array, "batches_per_epoch batch"]  # batches of the current epoch


class Batches(NamedTuple):
    """A schedule: `init(key) -> state` and `next(state, step) -> (state, indices [batch])`."""

    init: Callable[..., BatchState]
    next: Callable[..., tuple[BatchState, Int32[Array, " batch"]]]


def batches(num_examples: int, batch_size: int) -> Batches:
    """Makes a schedule of batches drawn without replacement, epoch by epoch.

        indices(step) = permutation(fold_in(key, e))[b * batch_size : (b + 1) * batch_size]
        e, b = divmod(step, num_examples // batch_size)

    The last `num_examples % batch_size` examples of an epoch's permutation are left out of that epoch. Use
    `next` in the body of a `lax.scan` over integer steps from 0, also under `vmap` over seeds: if `step` is
    not batched, a permutation is drawn only on the first step of an epoch. A run can be resumed at any step.

    >>> schedule = batches(num_examples=6, batch_size=2)
    >>> _, indices = jax.lax.scan(schedule.next, schedule.init(jax.random.key(0)), jnp.arange(6))
    >>> sorted(indices[:3].ravel().tolist()), sorted(indices[3:].ravel().tolist())
    ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])
    """
    check_count("num_examples", num_examples)
    check_count("batch_size", batch_size)
    if batch_size > num_examples:
        raise ValueError(f"batch_size: expected at most num_examples ({num_examples}), got {batch_size}")
    batches_per_epoch = num_examples // batch_size

    def draw(key: Key, epoch: Int[Array, ""] | int) -> Int32[Array, "batches_per_epoch batch"]:
        examples = jnp.arange(num_examples, dtype=jnp.int32)
        order = jax.random.permutation(jax.random.fold_in(key, epoch), examples)
        return order[: batches_per_epoch * batch_size].reshape(batches_per_epoch, batch_size)

    def init(key: Key) -> BatchState:
        check_key("key", key)
        return BatchState(key, draw(key, 0))

    def next_batch(state: BatchState, step: Int[Array, ""] | int) -> tuple[BatchState, Array]:
        check_counter("step", step)
        epoch, batch = step // batches_per_epoch, step % batches_per_epoch
        starts = (batch == 0) & (epoch > 0)  # init draws the first epoch
        order = jax.lax.cond(starts, lambda: draw(state.key, epoch), lambda: state.order)
        return BatchState(state.key, order), order[batch]

    return Batches(init, next_batch)
