"""Compiled programs of trials: one per static shape, each for a block of trials with all seeds."""

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
        self._block = next(n for n in count(side_by_side) if n * keys.size % jax.device_count() == 0)

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
            fresh = []
            for i, carry in enumerate(carries):
                carries[i], score = program.advance(carry, number, program.shared)
                fresh.append(np.asarray(score))
            scores[running] = np.concatenate(fresh).reshape(-1, seeds)[: running.size]
            if number + 1 < program.chunks:
                stay = np.array([not hopeless(i, number + 1, scores[i]) for i in running.tolist()])
                if not stay.all():
                    carries, running = self._close_up(carries, np.flatnonzero(stay)), running[stay]
            if not carries:
                break
        return scores, np.isin(np.arange(len(trials)), running)

    def _compiled(self, trial: Mapping[str, Any]) -> Program:
        static = {name: trial[name] for name in self._sweepable.static}
        shape = tuple(static.values())
        if shape not in self._programs:
            program = self._sweepable.make(static)
            self._programs[shape] = program._replace(
                init=ll.ensemble(program.init, in_axes=(0, 0, None)),
                advance=ll.ensemble(program.advance, in_axes=(0, None, None)),
                shared=ll.replicate(program.shared),
            )
        return self._programs[shape]

    def _blocks(self, trials: np.ndarray) -> np.ndarray:
        """Splits trials into blocks, and fills up the last block with copies of the last trial."""
        padded = np.concatenate([trials, np.repeat(trials[-1:], -trials.size % self._block)])
        return padded.reshape(-1, self._block)

    def _start(self, program: Program, trials: Sequence[Mapping[str, Any]]) -> Any:
        values = {name: np.array([trial[name] for trial in trials]) for name in self._sweepable.traced}
        traced: Any = {name: np.repeat(v.astype(np.float32), self._keys.size) for name, v in values.items()}
        # Block here so that running out of memory raises an error: otherwise XLA would wait forever.
        return jax.block_until_ready(program.init(jnp.tile(self._keys, self._block), traced, program.shared))

    def _close_up(self, carries: list[Any], kept: np.ndarray) -> list[Any]:
        """Regroups the kept trials into blocks."""
        carries = jax.device_put(carries, jax.devices()[0])
        origins = (np.divmod(block, self._block) for block in self._blocks(kept))
        return [_join([carries[i] for i in of_blocks], places) for of_blocks, places in origins]


@jax.jit
def _join(blocks: list[Any], places: jax.Array) -> Any:
    """Joins as many trials as a block has: the one at `places[i]` of `blocks[i]`, for every i."""

    def join(*leaves: jax.Array) -> jax.Array:
        by_trial = (leaf.reshape(len(leaves), -1, *leaf.shape[1:]) for leaf in leaves)
        return jnp.concatenate([leaf[place] for leaf, place in zip(by_trial, places, strict=True)])

    return jax.tree.map(join, *blocks)
