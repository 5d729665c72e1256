"""Times of a compiled program and of a reference loop, taken in turn in one process, and what bounds them."""

import time
from collections.abc import Callable
from functools import cache, partial
from itertools import cycle
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.work import Work, work_of

SHORTEST = 0.02
"""Seconds that a measurement takes at least; shorter calls are repeated within it."""


class Ours(NamedTuple):
    """A program of the library.

    Fields:
      function: `(key, *args) -> results`; it is compiled here.
      args: its arguments after the key.
      pieces: pieces of work, an update for example, that one call does: of all seeds and steps.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    pieces: int


class Floors(NamedTuple):
    """What this machine can do at most, measured.

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


class Comparison(NamedTuple):
    """What came out; seconds are those of one piece of work, the medians over the repeats.

    Fields:
      ours_s: of the library.
      reference_s: of the reference.
      floor_share: of the time of the library's program that this machine needs at least.
      compile_s: seconds to lower and compile the program, apart from the others.
      peak_mb: temporaries and results of the program, 10^6 bytes.
    """

    ours_s: float
    reference_s: float
    floor_share: float
    compile_s: float
    peak_mb: float

    @property
    def ratio(self) -> float:
        """How many times the library does what the reference does once."""
        return self.reference_s / self.ours_s


def compare(
    ours: Ours, reference: Callable[[], object], repeats: int, floors: Floors | None = None
) -> Comparison:
    """Times both in turn, so that what else the machine does falls on both.

    Args:
      ours: the library's program. Every call gets a key of its own.
      reference: one piece of work.
      repeats: measurements of each, at least 1.
      floors: of this machine; by default measured, once a process.

    Raises:
      ValueError: for fewer than one repeat.
      RuntimeError: if a further call traces the program again.
    """
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, got {repeats}")
    floors = measured_floors() if floors is None else floors
    traces = 0

    def counted(*args: Any) -> Any:
        nonlocal traces
        traces += 1
        return ours.function(*args)

    program = jax.jit(counted)
    keys = cycle([jax.random.key(number) for number in range(16)])
    traced = program.trace(next(keys), *ours.args)
    began = time.perf_counter()
    compiled = traced.lower().compile()
    compile_s = time.perf_counter() - began

    def call() -> None:
        jax.block_until_ready(program(next(keys), *ours.args))

    def many(function: Callable[[], object], calls: int) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - began) / calls

    calls = [_calls(function) for function in (call, reference)]
    times = [[many(f, n) for f, n in zip((call, reference), calls, strict=True)] for _ in range(repeats)]
    if traces != 1:
        raise RuntimeError(f"expected one trace of the program, got {traces}")
    of_call, of_reference = (median(column) for column in zip(*times, strict=True))
    least = floors.seconds(work_of(traced), least_bytes(compiled))
    peak_mb = peak_bytes(compiled) / 1e6
    return Comparison(of_call / ours.pieces, of_reference, least / of_call, compile_s, peak_mb)


def _calls(function: Callable[[], object]) -> int:
    """How many calls fill a measurement; 1 000 at most. Also warms up."""
    function()
    began = time.perf_counter()
    function()
    return max(1, min(1_000, int(SHORTEST / max(time.perf_counter() - began, 1e-9)) + 1))


def least_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes that a program must move: its arguments once and its results once.

    XLA's `bytes accessed` counts what goes from one fused loop to the next too, which a cache may hold (one
    weight perturbation of 1.6 MB of weights: 92 MB on a CPU), and bodies of loops once: no bound.
    """
    memory = compiled.memory_analysis()
    return 0 if memory is None else memory.argument_size_in_bytes + memory.output_size_in_bytes


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes of temporaries and results; 0 where the backend does not tell."""
    memory = compiled.memory_analysis()
    return 0 if memory is None else memory.temp_size_in_bytes + memory.output_size_in_bytes


@cache
def measured_floors() -> Floors:
    """Measures what this machine can do; once a process."""
    on_cpu = jax.default_backend() == "cpu"
    side, size, piece, rounds = (1_536, 1 << 23, 1 << 14, 8) if on_cpu else (8_192, 1 << 27, 1 << 27, 8)
    matrix, vector, key = jnp.ones((side, side)), jnp.ones(size), jax.random.key(0)

    def passes(a: jax.Array) -> jax.Array:
        """Reads and writes in place: a new result every time would measure how fast pages are given out."""
        return jax.lax.fori_loop(0, rounds, lambda _, a: 0.5 * a + 1, a)

    def drawn(draw: Callable[..., jax.Array], key: jax.Array) -> jax.Array:
        """Random numbers, by the piece that a core's cache holds, and used at once: no memory in between."""
        keys = jax.random.split(key, size // piece)
        return jax.lax.map(lambda k: jnp.sum(draw(k, (piece,))), keys)

    return Floors(
        flops=2.0 * side**3 / _fastest(lambda a: a @ a, matrix),
        bandwidth=rounds * 2.0 * vector.nbytes / _fastest(passes, vector),
        normals=size / _fastest(partial(drawn, jax.random.normal), key),
        words=size / _fastest(partial(drawn, jax.random.bits), key),
    )


def _fastest(function: Callable[[Any], Any], argument: Any, repeats: int = 7) -> float:
    """Seconds of the fastest call."""
    program = jax.jit(function)
    jax.block_until_ready(program(argument))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(program(argument))
        times.append(time.perf_counter() - began)
    return min(times)
