"""Compiled programs of trials: one per static shape, each for a block of trials with all seeds."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import lax_learning as ll
from experiments.sweeping import Program, Sweepable


class Programs:
    """Compiled programs of a sweep, kept from batch to batch; all trials have the same keys `[seeds]`.

    A block has `side_by_side` trials, or the next larger number with which the seeds fill all devices evenly.
    """

    def __init__(self, sweepable: Sweepable, keys: jax.Array, side_by_side: int) -> None:
        self._sweepable = sweepable
        self._keys = keys
        self._programs: dict[tuple[Any, ...], Program] = {}
        mesh, devices = Mesh(jax.local_devices(), ("seed",)), jax.local_device_count()
        self._everywhere = NamedSharding(mesh, PartitionSpec())
        self._spread = NamedSharding(mesh, PartitionSpec("seed"))
        self._block = next(n for n in count(side_by_side) if n * keys.size % devices == 0)

    def run(
        self, trials: Sequence[Mapping[str, Any]], hopeless: Callable[[int, int, np.ndarray], bool]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Runs trials of one static shape, and stops those that are `hopeless`.

        `hopeless(index in trials, finished chunks, scores [seeds])` is called between chunks. Returns the
        last scores of all trials, `[trials, seeds]`, and whether each ran to the end, `[trials]`.
        """
        program, seeds = self._compiled(trials[0]), self._keys.size
        running = np.arange(len(trials))
        scores = np.full((len(trials), seeds), np.nan, np.float32)
        carries = [self._start(program, [trials[i] for i in block]) for block in self._blocks(running)]
        for number in range(program.chunks):
            if not carries:
                break
            fresh = []
            for i, carry in enumerate(carries):
                carries[i], score = program.advance(carry, number, program.shared)
                fresh.append(np.asarray(score))
            scores[running] = np.concatenate(fresh).reshape(-1, seeds)[: running.size]
            if number + 1 < program.chunks:
                stay = np.array([not hopeless(i, number + 1, scores[i]) for i in running.tolist()], bool)
                if not stay.all():
                    carries = self._close_up(carries, np.flatnonzero(stay))
                    running = running[stay]
        return scores, np.isin(np.arange(len(trials)), running)

    def _compiled(self, trial: Mapping[str, Any]) -> Program:
        static = {name: trial[name] for name in self._sweepable.static}
        shape = tuple(static.values())
        if shape not in self._programs:
            program = self._sweepable.make(static)
            self._programs[shape] = program._replace(
                init=ll.ensemble(program.init, in_axes=(0, 0, None)),
                advance=ll.ensemble(program.advance, in_axes=(0, None, None)),
                shared=jax.device_put(program.shared, self._everywhere),
            )
        return self._programs[shape]

    def _blocks(self, trials: np.ndarray) -> list[np.ndarray]:
        """Splits trials into blocks, and fills up the last block with copies of the last trial."""
        padded = np.concatenate([trials, np.repeat(trials[-1:], -trials.size % self._block)])
        return list(padded.reshape(-1, self._block))

    def _start(self, program: Program, trials: Sequence[Mapping[str, Any]]) -> Any:
        values = {name: [trial[name] for trial in trials] for name in self._sweepable.traced}
        values = {name: jnp.repeat(jnp.array(v, jnp.float32), self._keys.size) for name, v in values.items()}
        # Block here so that running out of memory raises an error: otherwise XLA would wait forever.
        return jax.block_until_ready(program.init(jnp.tile(self._keys, self._block), values, program.shared))

    def _close_up(self, carries: list[Any], kept: np.ndarray) -> list[Any]:
        """Regroups the kept trials into blocks, without compiling a program for their number."""
        device = jax.local_devices()[0]
        each = [one for carry in carries for one in _split(jax.device_put(carry, device), self._block)]
        blocks = [_join([each[i] for i in block]) for block in self._blocks(kept)]
        return [jax.device_put(block, self._spread) for block in blocks]


@partial(jax.jit, static_argnums=1)
def _split(carry: Any, trials: int) -> list[Any]:
    """Splits the carry of a block into those of its trials."""
    leaves, structure = jax.tree.flatten(carry)
    parts = [jnp.split(leaf, trials) for leaf in leaves]
    return [structure.unflatten(of_trial) for of_trial in zip(*parts, strict=True)]


@jax.jit
def _join(carries: list[Any]) -> Any:
    """Joins the carries of trials into that of a block."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *carries)
