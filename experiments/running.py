"""Runs of many members side by side, step by step, each from its checkpoint if there is one."""

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
    """Computation of one member in steps: training, a pass over data, a population, a critic, a trial."""

    init: Callable[..., Any]  # (*member, shared) -> carry
    step: Callable[[Any, Any, Any], tuple[Any, Metrics]]  # (carry, number, shared) -> (carry, metrics)
    num_steps: int
    # (carry, number, shared) -> more metrics, after so many steps; from 0 on, and not timed
    measure: Callable[[Any, Any, Any], Metrics] = lambda carry, number, shared: {}


class Group(NamedTuple):
    """Configurations that one program can hold."""

    static: dict[str, Any]  # what they have in common and a program is made for: sizes, numbers of steps
    traced: dict[str, np.ndarray]  # what differs, each value [members]
    members: tuple[int, ...]  # their places among all configurations


def group_by_shape(configurations: Sequence[Mapping[str, Any]], static: Sequence[str]) -> list[Group]:
    """Groups configurations of the same fields by the static ones, in the order of their first members."""
    places: dict[tuple[Any, ...], list[int]] = {}
    for i, one in enumerate(configurations):
        # 1, 1.0 and True are equal, and make different programs.
        places.setdefault(tuple((type(one[name]), one[name]) for name in static), []).append(i)
    traced = [name for name in next(iter(configurations), {}) if name not in static]
    groups = []
    for members in places.values():
        shared = {name: configurations[members[0]][name] for name in static}
        varied = {name: np.array([configurations[i][name] for i in members]) for name in traced}
        groups.append(Group(shared, varied, tuple(members)))
    return groups


class Stage(NamedTuple):
    """Result of a run of many members."""

    metrics: dict[str, np.ndarray]  # of the steps [member, step, ...], and measured [member, 1 + step, ...]
    state: Any  # of all members, on their devices; see `collect`
    seconds: np.ndarray  # of every step for each member, compilation and measuring apart, [step]


def side_by_side(on_cpu: int = 1) -> int | None:
    """`batch_size` of `ll.ensemble`: so many members on a CPU's core, all of them on an accelerator.

    A fixed number makes results the same to the last bit for any number of devices.
    """
    return on_cpu if jax.default_backend() == "cpu" else None


def spread(members: Any) -> Any:
    """Members so that they fill all devices evenly: the last is repeated.

    Between calls of ensembles they then stay on their devices, without communication.
    """
    count = len(jax.tree.leaves(members)[0])
    filled = np.minimum(np.arange(count + -count % jax.device_count()), count - 1)
    return members if len(filled) == count else jax.tree.map(lambda leaf: leaf[filled], members)


def collect(spread_out: Any, count: int) -> Any:
    """Returns the first members as NumPy arrays, in every process."""
    return jax.tree.map(lambda leaf: leaf[:count], ll.gather(spread_out))


@lru_cache(maxsize=16)
def _programs(run: Run, num_arguments: int, batch_size: int | None) -> tuple[Any, Any, Any]:
    """Programs of the start, a step and a measurement of all members; parts with the same run share them."""
    # As functions that are compiled they are traced once, though two programs need them.
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
    """Runs all members side by side, step by step, from their checkpoint if there is one.

    Members are arguments of `run.init`, each with a leading axis of members; `shared` is what they all see.
    Each step moves the progress on by its cost, by default 1. A CPU's core computes `on_cpu` members at once.
    """
    costs = [1] * run.num_steps if costs is None else costs
    count = len(jax.tree.leaves(members)[0])
    begin, step, look = _programs(run, len(members), side_by_side(on_cpu))
    shared = ll.replicate(shared)  # once, and not at every step
    carry, of_steps, measured = begin(*spread(members), shared)
    measured = jax.block_until_ready(look(carry, measured, 0, shared))  # a lack of memory shows here
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
