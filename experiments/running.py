"""One stage of an experiment: all members side by side, step by step, from its checkpoint if there is one."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import lax_learning as ll
from experiments.checkpoints import Checkpoint


class Stage(NamedTuple):
    """Result of a stage.

    Fields:
      metrics: values `[member, step, ...]`.
      state: of all members, on their devices; see `collect`.
      seconds: that every step took for each member, compilation and measuring apart, `[step]`.
    """

    metrics: dict[str, np.ndarray]
    state: Any
    seconds: np.ndarray


def side_by_side(on_cpu: int = 1) -> int | None:
    """`batch_size` of `ll.ensemble`: so many members on a CPU's core, all of them on an accelerator.

    A fixed number makes results the same to the last bit for any number of devices.
    """
    return on_cpu if jax.default_backend() == "cpu" else None


def spread(members: Any) -> Any:
    """Members so that they fill all devices evenly: the last is repeated.

    Between calls of ensembles they then stay where they are, and no message is sent.
    """
    count = len(jax.tree.leaves(members)[0])
    filled = np.minimum(np.arange(count + -count % jax.device_count()), count - 1)
    return members if len(filled) == count else jax.tree.map(lambda leaf: leaf[filled], members)


def collect(spread_out: Any, count: int) -> Any:
    """The first members as NumPy arrays, in every process."""
    return jax.tree.map(lambda leaf: leaf[:count], ll.gather(spread_out))


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
    on_cpu: int = 1,
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
      on_cpu: how many members a CPU's core computes side by side.
    """

    def start(*member: Any) -> tuple[Any, dict[str, jax.Array]]:
        shapes = {name: (len(costs), *shape) for name, shape in metrics.items()}
        return init(*member), {name: jnp.full(shape, jnp.nan) for name, shape in shapes.items()}

    def keep(carry: Any, held: Any, found: Any, number: Any, shared: Any) -> dict[str, jax.Array]:
        found = {**found, **measure(carry, number, shared)}
        return {**held, **{name: held[name].at[number].set(value) for name, value in found.items()}}

    count, batch_size = len(jax.tree.leaves(members)[0]), side_by_side(on_cpu)
    begin = ll.ensemble(start, in_axes=(0,) * len(members), batch_size=batch_size)
    carry, held = jax.block_until_ready(begin(*spread(members)))  # or lack of memory is told by nobody
    shared = ll.replicate(shared)  # once, and not at every step
    advance = ll.ensemble(step, in_axes=(0, None, None), batch_size=batch_size)
    look = ll.ensemble(keep, in_axes=(0, 0, 0, None, None), batch_size=batch_size)
    seconds = np.full(len(costs), np.nan)
    checkpoint = Checkpoint(folder)
    first, (carry, held, seconds) = checkpoint.restore((carry, held, seconds)) or (0, (carry, held, seconds))
    progress.update(sum(costs[:first]))
    advance.compile(carry, first, shared)
    for number in range(first, len(costs)):
        began = time.perf_counter()
        carry, found = jax.block_until_ready(advance(carry, number, shared))
        seconds[number] = (time.perf_counter() - began) / count
        held = look(carry, held, found, number, shared)
        checkpoint.save(number + 1, (carry, held, seconds), now=number + 1 == len(costs))
        progress.update(costs[number])
    return Stage(collect(held, count), carry, seconds)
