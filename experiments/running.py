"""One stage of an experiment: all members side by side, step by step, from its checkpoint if there is one."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

import lax_learning as ll
from experiments import harness


class Stage(NamedTuple):
    """What a stage leaves.

    Fields:
      metrics: values `[member, step, ...]`.
      state: of all members.
      seconds: that every step took for each member, compilation and measuring apart, `[step]`.
    """

    metrics: dict[str, np.ndarray]
    state: Any
    seconds: np.ndarray


def run_stage(
    folder: Path,
    members: tuple[Any, ...],
    init: Callable[..., Any],
    step: Callable[[Any, Any, Any], tuple[Any, dict[str, jax.Array]]],
    metrics: Mapping[Any, tuple[int, ...]],
    costs: Sequence[int],
    shared: Any,
    progress: tqdm,
    measure: Callable[[Any, Any, Any], dict[str, jax.Array]] = lambda carry, number, shared: {},
    batch_size: int | None = None,
) -> Stage:
    """Runs all members of a stage side by side, step by step, from its checkpoint if there is one.

    Args:
      folder: for checkpoints.
      members: arguments of `init`, each with a leading axis of members.
      init: `(*member) -> carry`.
      step: `(carry, number, shared) -> (carry, metrics)`.
      metrics: names and shapes of the metrics.
      costs: one for each step: by how much it moves the progress on.
      shared: what all members see.
      progress: moves on with every step.
      measure: `(carry, number, shared) -> more metrics`, after every step and not timed.
      batch_size: of `ll.ensemble`.
    """
    carry = ll.ensemble(init, in_axes=(0,) * len(members))(*members)
    everywhere = NamedSharding(Mesh(jax.local_devices(), ("seed",)), PartitionSpec())
    shared = jax.device_put(shared, everywhere)  # once, and not at every step
    advance = ll.ensemble(step, in_axes=(0, None, None), batch_size=batch_size)
    look = ll.ensemble(measure, in_axes=(0, None, None))
    count, num_steps = len(jax.tree.leaves(members)[0]), len(costs)
    held = {name: np.full((count, num_steps, *shape), np.nan, np.float32) for name, shape in metrics.items()}
    seconds = np.full(num_steps, np.nan)
    checkpoint = harness.Checkpoint(folder)
    start, (carry, held, seconds) = checkpoint.restore((carry, held, seconds)) or (0, (carry, held, seconds))
    progress.update(sum(costs[:start]))
    advance.compile(carry, start, shared)
    for number in range(start, num_steps):
        began = time.perf_counter()
        carry, values = jax.block_until_ready(advance(carry, number, shared))
        seconds[number] = (time.perf_counter() - began) / count
        for name, value in {**values, **look(carry, number, shared)}.items():
            held[name][:, number] = value
        checkpoint.save(number + 1, (carry, held, seconds), now=number + 1 == num_steps)
        progress.update(costs[number])
    return Stage(held, carry, seconds)
