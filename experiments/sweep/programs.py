"""Trials in compiled programs: one for each static shape, for a fixed number of trials over all seeds."""

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import lax_learning as ll
from experiments.sweeping import Sweepable

Hopeless = Callable[[int, np.ndarray, np.ndarray], np.ndarray]


class Runner(NamedTuple):
    """Program of blocks of trials of one static shape; compiled when it is first called.

    Fields:
      init: `(keys, traced, shared) -> carry`, all with a leading axis of block x seeds.
      advance: `(carry, number, shared) -> (carry, scores)`.
      chunks: how many there are.
      shared: on all devices.
    """

    init: Callable[..., Any]
    advance: Callable[..., tuple[Any, jax.Array]]
    chunks: int
    shared: Any


class Programs:
    """The programs of a sweep, kept from batch to batch."""

    def __init__(self, sweepable: Sweepable, keys: jax.Array, side_by_side: int) -> None:
        """All trials see the same `keys [seeds]`; `side_by_side` trials make a block."""
        self._sweepable = sweepable
        self._keys = keys
        self._runners: dict[tuple[Any, ...], Runner] = {}
        mesh, devices = Mesh(jax.local_devices(), ("seed",)), jax.local_device_count()
        self._everywhere = NamedSharding(mesh, PartitionSpec())
        self._spread = NamedSharding(mesh, PartitionSpec("seed"))
        while side_by_side * keys.shape[0] % devices:  # no device idles, and nothing is padded
            side_by_side += 1
        self._block = side_by_side

    def _runner(self, static: Mapping[str, Any]) -> Runner:
        shape = tuple(sorted(static.items()))
        if shape not in self._runners:
            program = self._sweepable.make(static)
            self._runners[shape] = Runner(
                ll.ensemble(program.init, in_axes=(0, 0, None)),
                ll.ensemble(program.advance, in_axes=(0, None, None)),
                program.chunks,
                jax.device_put(program.shared, self._everywhere),
            )
        return self._runners[shape]

    def run(
        self, static: Mapping[str, Any], traced: Mapping[str, np.ndarray], hopeless: Hopeless
    ) -> np.ndarray:
        """Runs trials of one static shape, and stops those that are hopeless.

        Args:
          static: hyper-parameters that the trials have in common.
          traced: the others, each `[trials]`.
          hopeless: `(chunks done, trials, scores [trials, seeds]) -> [trials]`, asked between chunks of the
            trials that still run. Their blocks are closed up when that saves one.

        Returns:
          The last score of every trial, `[trials, seeds]`.
        """
        runner, seeds, block = self._runner(static), self._keys.shape[0], self._block
        count = len(next(iter(traced.values())))
        alive, members = np.ones(count, bool), np.arange(count)
        scores = np.full((count, seeds), np.nan, np.float32)
        # A start that failed for lack of memory tells it here: XLA would wait for it for ever.
        carries = jax.block_until_ready(
            [self._start(runner, traced, chosen) for chosen in _blocks(members, block)]
        )
        for number in range(runner.chunks):
            found = []
            for i, carry in enumerate(carries):
                carries[i], score = runner.advance(carry, number, runner.shared)
                found.append(np.asarray(score).reshape(block, seeds))
            fresh = np.concatenate(found)[: members.size]
            scores[members[alive[members]]] = fresh[alive[members]]
            if number + 1 == runner.chunks:
                break
            running = np.flatnonzero(alive)
            alive[running] = ~hopeless(number + 1, running, scores[running])
            left = int(alive.sum())
            if left == 0:
                break
            if -(-left // block) < len(carries):
                kept = np.flatnonzero(alive[members])
                rows = [
                    (chosen[:, None] * seeds + np.arange(seeds)).ravel() for chosen in _blocks(kept, block)
                ]
                closed = _close_up(jax.device_put(carries, jax.local_devices()[0]), np.stack(rows))
                carries = list(jax.device_put(closed, self._spread))  # as before: nothing compiles again
                members = members[kept]
        return scores

    def _start(self, runner: Runner, traced: Mapping[str, np.ndarray], chosen: np.ndarray) -> Any:
        seeds = self._keys.shape[0]
        values = {name: np.repeat(v[chosen].astype(np.float32), seeds) for name, v in traced.items()}
        return runner.init(jnp.tile(self._keys, self._block), values, runner.shared)


def _blocks(members: np.ndarray, block: int) -> list[np.ndarray]:
    """Blocks of members; the last member fills the last block up."""
    padded = np.concatenate([members, np.repeat(members[-1:], -members.size % block)])
    return list(padded.reshape(-1, block))


@jax.jit
def _close_up(carries: list[Any], rows: jax.Array) -> tuple[Any, ...]:
    """Blocks made of `rows [blocks, rows]` of all blocks together."""

    def close_up(*leaves: jax.Array) -> jax.Array:
        return jnp.concatenate(leaves)[rows]

    whole = jax.tree.map(close_up, *carries)
    return tuple(jax.tree.map(itemgetter(i), whole) for i in range(len(rows)))
