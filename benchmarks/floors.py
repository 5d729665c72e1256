"""Limits of this machine, measured: the least time that a piece of work takes on it."""

import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.work import Work
from experiments import memory


class Floors(NamedTuple):
    """Limits of this machine, measured.

    Fields:
      flops: of float32 matrix products, operations a second.
      bandwidth: bytes read and written a second.
      normals: normal random numbers a second.
      words: random words of 32 bits a second.
    """

    flops: float
    bandwidth: float
    normals: float
    words: float

    def seconds(self, work: Work, num_bytes: float) -> float:
        """The least time for this work."""
        drawing = work.normals / self.normals + work.words / self.words
        return max(work.flops / self.flops, num_bytes / self.bandwidth, drawing)


def memory_mb() -> float | None:
    """Memory of all devices, 10^6 bytes; of the machine where they are CPU cores; None if nobody tells."""
    found = memory.total_bytes()
    return None if found is None else found / 1e6


def measured_floors(repeats: int = 3) -> Floors:
    """Measures what this machine can do now: the fastest of a few calls each."""
    return Floors(*(amount / min(_seconds(call) for _ in range(repeats)) for amount, call in _programs()))


@cache
def _programs() -> tuple[tuple[float, Callable[[], Any]], ...]:
    """Amounts of work and compiled programs that do them, in the order of the fields of `Floors`."""
    on_cpu = jax.default_backend() == "cpu"
    side, size, drawn, rounds = (1_536, 1 << 23, 1 << 19, 8) if on_cpu else (8_192, 1 << 27, 1 << 27, 8)
    matrix, vector, key = jnp.ones((side, side)), jnp.ones(size), jax.random.key(0)

    def passes(a: jax.Array) -> jax.Array:
        """Reads and writes in place: a new result every time would measure how fast pages are given out."""
        return jax.lax.fori_loop(0, rounds, lambda _, a: 0.5 * a + 1, a)

    def compiled(function: Callable[[Any], Any], argument: Any) -> Callable[[], Any]:
        program = jax.jit(function)
        jax.block_until_ready(program(argument))
        return lambda: program(argument)

    return (
        (2.0 * side**3, compiled(lambda a: a @ a, matrix)),
        (rounds * 2.0 * vector.nbytes, compiled(passes, vector)),
        (drawn, compiled(lambda key: jax.random.normal(key, (drawn,)), key)),
        (drawn, compiled(lambda key: jax.random.bits(key, (drawn,)), key)),
    )


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began
