"""Measured limits of this machine, and the lower bounds on run times that follow from them."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.pairs import seconds_per_call
from benchmarks.work import Work


class Floors(NamedTuple):
    """Measured limits of this machine."""

    flops: float  # floating-point operations per second, in large float32 matrix products
    bandwidth: float  # bytes read and written per second
    normals: float  # normal random numbers per second
    words: float  # random words of 32 bits per second

    def seconds(self, work: Work, num_bytes: float) -> float:
        """Returns a lower bound on the time for this work."""
        drawing = work.normals / self.normals + work.words / self.words
        return max(work.flops / self.flops, num_bytes / self.bandwidth, drawing)


def measured_floors(repeats: int = 3) -> Floors:
    """Measures the current limits of this machine: the fastest of a few calls each."""
    return Floors(*(work / min(seconds_per_call(call) for _ in range(repeats)) for work, call in _programs()))


@cache
def _programs() -> tuple[tuple[float, Callable[[], Any]], ...]:
    """Returns amounts of work, and compiled programs that do them, in the order of the fields of `Floors`."""
    on_cpu = jax.default_backend() == "cpu"
    side, size, drawn, rounds = (1_536, 1 << 23, 1 << 19, 8) if on_cpu else (8_192, 1 << 27, 1 << 27, 8)
    matrix, vector, key = jnp.ones((side, side)), jnp.ones(size), jax.random.key(0)

    def passes(a: jax.Array) -> jax.Array:
        """Reads and writes in place, because new results would measure the allocation of pages."""
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
