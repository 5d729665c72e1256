"""Runs of ensembles, step by step, resumed from a checkpoint if there is one."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import lax_learning as ll
from experiments.checkpoints import Checkpoint

Metrics = Mapping[Any, jax.Array]


class Run(NamedTuple):
    """Computation of one ensemble member in steps, such as training or a pass over data."""

    init: Callable[..., Any]  # (*member, shared) -> carry
    step: Callable[[Any, Any, Any], tuple[Any, Metrics]]  # (carry, number, shared) -> (carry, metrics)
    num_steps: int
    # (carry, number, shared) -> further metrics after `number` steps, starting at 0; not timed
    measure: Callable[[Any, Any, Any], Metrics] = lambda carry, number, shared: {}


class Group(NamedTuple):
    """Configurations that can share one compiled program."""

    static: dict[str, Any]  # common values that the program depends on, such as sizes and numbers of steps
    traced: dict[str, np.ndarray]  # values that differ, each [members]
    members: tuple[int, ...]  # indices among all configurations


def group_by_shape(configurations: Sequence[Mapping[str, Any]], static: Sequence[str]) -> list[Group]:
    """Groups configurations by their static fields, in the order of the first member of each group."""
    places: dict[tuple[Any, ...], list[int]] = {}
    for i, one in enumerate(configurations):
        # 1, 1.0 and True are equal, but make different programs.
        places.setdefault(tuple((type(one[name]), one[name]) for name in static), []).append(i)
    traced = [name for name in next(iter(configurations), {}) if name not in static]
    groups = []
    for members in places.values():
        shared = {name: configurations[members[0]][name] for name in static}
        varied = {name: np.array([configurations[i][name] for i in members]) for name in traced}
        groups.append(Group(shared, varied, tuple(members)))
    return groups


class Stage(NamedTuple):
    """Result of a run of an ensemble."""

    metrics: dict[str, np.ndarray]  # of `step` [member, step, ...] and of `measure` [member, 1 + step, ...]
    state: Any  # of all members, on their devices; see `collect`
    seconds: np.ndarray  # time of every step per member, without compilation and `measure`, [step]


def side_by_side(on_cpu: int = 1) -> int | None:
    """Returns the `batch_size` for `ll.ensemble`: `on_cpu` members on a CPU core, all on an accelerator.

    With a fixed number, results on the same devices do not depend on how many members run.
    """
    return on_cpu if jax.default_backend() == "cpu" else None


def spread(members: Any) -> Any:
    """Repeats the last member until the members fill all devices evenly.

    They then stay on their devices between calls of ensembles, without communication.
    """
    count = len(jax.tree.leaves(members)[0])
    filled = np.minimum(np.arange(count + -count % jax.device_count()), count - 1)
    return members if len(filled) == count else jax.tree.map(lambda leaf: leaf[filled], members)


def collect(spread_out: Any, count: int) -> Any:
    """Returns the first `count` members as NumPy arrays, in every process."""
    return jax.tree.map(lambda leaf: leaf[:count], ll.gather(spread_out))


@lru_cache(maxsize=16)
def _programs(run: Run, num_arguments: int, batch_size: int | None) -> tuple[Any, Any, Any]:
    """Returns programs that start, advance and measure all members; parts with the same run share them."""
    # Jitted functions are traced only once, although two programs use each.
    step, measure = jax.jit(run.step), jax.jit(run.measure)

    def many(function: Callable[..., Any], *in_axes: int | None) -> Any:
        return ll.ensemble(function, in_axes=in_axes, batch_size=batch_size)

    def start(*args: Any) -> tuple[Any, Metrics, Metrics]:
        *member, shared = args
        carry, number = run.init(*member, shared), jnp.zeros((), jnp.int32)

        def room(metrics: Metrics, count: int) -> Metrics:
            return {name: jnp.full((count, *jnp.shape(value)), jnp.nan) for name, value in metrics.items()}

        of_steps, measured = (jax.eval_shape(f, carry, number, shared) for f in (step, measure))
        return carry, room(of_steps[1], run.num_steps), room(measured, run.num_steps + 1)

    def advance(carry: Any, of_steps: Metrics, number: Any, shared: Any) -> tuple[Any, Metrics]:
        carry, found = step(carry, number, shared)
        return carry, {name: of_steps[name].at[number].set(value) for name, value in found.items()}

    def look(carry: Any, measured: Metrics, number: Any, shared: Any) -> Metrics:
        found = measure(carry, number, shared)
        return {name: measured[name].at[number].set(value) for name, value in found.items()}

    both = (0, 0, None, None)
    return many(start, *(0,) * num_arguments, None), many(advance, *both), many(look, *both)


def run_members(
    run: Run, members: tuple[Any, ...], shared: Any, folder: Path, progress: tqdm,
    costs: Sequence[int] | None = None, on_cpu: int = 1,
) -> Stage:  # fmt: skip
    """Runs all members in parallel, step by step, resuming from their checkpoint if there is one.

    `members` are the arguments of `run.init`, with a leading axis of members; all members get `shared`. Each
    step advances the progress bar by its cost, by default 1. Each CPU core computes `on_cpu` members at once.
    """
    costs = [1] * run.num_steps if costs is None else costs
    count = len(jax.tree.leaves(members)[0])
    begin, step, look = _programs(run, len(members), side_by_side(on_cpu))
    shared = ll.replicate(shared)  # once instead of at every step
    carry, of_steps, measured = begin(*spread(members), shared)
    measured = jax.block_until_ready(look(carry, measured, 0, shared))  # raises if out of memory
    seconds = np.full(run.num_steps, np.nan)
    checkpoint = Checkpoint(folder)
    start_of_all = carry, (of_steps, measured), seconds
    first, (carry, (of_steps, measured), seconds) = checkpoint.restore(start_of_all) or (0, start_of_all)
    progress.update(sum(costs[:first]))
    step.compile(carry, of_steps, first, shared)
    for number in range(first, run.num_steps):
        began = time.perf_counter()
        carry, of_steps = jax.block_until_ready(step(carry, of_steps, number, shared))
        seconds[number] = (time.perf_counter() - began) / count
        measured = look(carry, measured, number + 1, shared)
        checkpoint.save(number + 1, (carry, (of_steps, measured), seconds))
        progress.update(costs[number])
    of_steps, measured = collect((of_steps, measured), count)
    return Stage({**of_steps, **measured}, carry, seconds)
