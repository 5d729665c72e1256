"""Alternating time measurements of a compiled program, of a reference, and of the machine's limits."""

import os
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from statistics import median, quantiles
from typing import Any, NamedTuple

import jax
from threadpoolctl import threadpool_limits

import lax_learning as ll
from benchmarks.floors import Floors, kernel_seconds, measured_floors
from benchmarks.pairs import seconds_per_call
from benchmarks.work import Work, work_of
from experiments.memory import bytes_of

SHORTEST = 0.2
"""Minimum duration of a measurement in seconds; shorter calls are repeated."""
PAUSE = 0.05
"""Pause before each measurement, in seconds."""
EXPLAINED = 0.5
"""Floor share below which products and draws are also measured separately."""
MOST_SPREAD, TIMES = 0.2, 3
"""Largest acceptable spread, and the maximum number of attempts to get below it with a share of at most 1."""


class Ours(NamedTuple):
    """A JAX program for one seed, or for several seeds with `lax_learning.ensemble`."""

    one: Callable[..., Any]  # `(key, member, *shared) -> results` for one seed, not yet compiled
    member: Any  # arguments of each seed; with several seeds, leaves have a leading axis of seeds
    shared: tuple[Any, ...] = ()  # arguments common to all seeds
    seeds: int = 1
    pieces: int = 1  # pieces of work per call and seed, for example updates
    # Seeds side by side on a CPU core, so that their weights fit into its cache; default: all.
    on_cpu: int | None = None


class Comparison(NamedTuple):
    """Result of a measurement; times are medians over repeats, in seconds per piece of work."""

    ours_s: float  # time of the library, per seed
    reference_s: float  # time of the reference
    floor_share: float  # lower bound on the time on this machine, relative to the library's time
    compile_s: float  # seconds to trace, lower and compile the program
    peak_mb: float  # temporaries and results of the program, in 10^6 bytes
    seed_mb: float  # the same per seed, including the arguments of the seed
    reference_threads: int  # number of threads of the reference, the faster of one and all
    spread: float  # interquartile range of the ratio over repeats, relative to its median
    # Time of the program's products and draws alone, relative to the library's time; measured for a
    # `floor_share` below `EXPLAINED`.
    kernels_share: float | None = None

    @property
    def is_doubtful(self) -> bool:
        """Returns whether other load disturbed the measurement; a share above 1 is impossible."""
        return self.floor_share > 1 or self.spread > MOST_SPREAD

    @property
    def ratio(self) -> float:
        """Speed of the library relative to the reference."""
        return self.reference_s / self.ours_s


Reference = Callable[[], object] | Ours
"""A call that does one piece of work for one seed, or a JAX program for one seed."""


def compare(
    ours: Ours, reference: Reference, repeats: int, floors: Callable[[], Floors] = measured_floors
) -> Comparison:
    """Times the program, the reference and the floors alternately, so that other load affects all of them.

    Doubtful measurements are repeated, up to `TIMES` in all; the one with the least spread is returned.

    Args:
      ours: the library's program; every call gets new keys. A call that traces it again is a RuntimeError.
      reference: the program or call to compare with.
      repeats: number of measurements of each, at least 1.
      floors: measures the limits of this machine.
    """
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, got {repeats}")
    began = time.perf_counter()
    compiled, call, traces = _compiled(ours)
    compile_s, expected = time.perf_counter() - began, len(traces)

    if isinstance(reference, Ours):
        theirs, pieces, threads = _compiled(reference)[1], reference.pieces, os.cpu_count() or 1
    else:
        theirs, pieces, threads = reference, 1, _fastest_threads(reference)
    start = 0 if ours.seeds == 1 else 1
    member = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[start:], leaf.dtype), ours.member)
    traced = jax.jit(ours.one).trace(jax.random.key(0), member, *ours.shared)
    work = Work(*(ours.seeds * amount for amount in work_of(traced)))
    # A program reads its arguments and writes its results at least once. XLA's `bytes accessed` is no lower
    # bound: it counts loop bodies once, and values passed between fused loops, which may stay in a cache.
    moved = bytes_of((ours.member, ours.shared)) + ours.seeds * bytes_of(traced.out_info)
    peak = _peak_bytes(compiled)
    of_seed = (peak + bytes_of(ours.member)) / ours.seeds

    def measured() -> Comparison:
        turns = [
            [_settled(function, n) for function, n in pairs] + [floors().seconds(work, moved)]
            for _ in range(repeats)
        ]
        of_call, of_reference, _ = (median(column) for column in zip(*turns, strict=True))
        share = median(floor / call for call, _, floor in turns)
        spread = _spread([reference / call for call, reference, _ in turns])
        ours_s, reference_s = of_call / (ours.pieces * ours.seeds), of_reference / pieces
        return Comparison(ours_s, reference_s, share, compile_s, peak / 1e6, of_seed / 1e6, threads, spread)

    with threadpool_limits(threads):
        pairs = [(function, _calls(function)) for function in (call, theirs)]
        found = [measured()]
        while found[-1].is_doubtful and len(found) < TIMES:
            found.append(measured())
    if len(traces) != expected:
        raise RuntimeError(f"expected {expected} traces of the program, got {len(traces)}")
    best = least_doubtful(found)
    if best.floor_share >= EXPLAINED:
        return best
    kernels = kernel_seconds(traced, floors()) / (ours.pieces * best.ours_s)
    return best._replace(kernels_share=kernels)


def least_doubtful(found: Sequence[Comparison]) -> Comparison:
    """Returns the measurement with the least spread, preferring those that are not doubtful."""
    return min(found, key=lambda each: (each.is_doubtful, each.spread))


def _spread(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    quarter, middle, three_quarters = quantiles(values, n=4)
    return (three_quarters - quarter) / middle


def _compiled(ours: Ours) -> tuple[jax.stages.Compiled, Callable[[], Any], list[None]]:
    """Returns a compiled program, a blocking call of it with new keys, and a list with an entry per trace."""
    traces: list[None] = []

    def counted(each: tuple[Any, Any], *shared: Any) -> Any:
        traces.append(None)
        return ours.one(*each, *shared)

    drawn = jax.random.split(jax.random.key(0), (16, ours.seeds))
    keys = cycle(drawn[:, 0] if ours.seeds == 1 else drawn)
    first = (next(keys), ours.member)
    if ours.seeds == 1:
        program = jax.jit(counted)
        compiled = program.lower(first, *ours.shared).compile()
    else:
        on_cpu = jax.default_backend() == "cpu"
        program = ll.ensemble(counted, batch_size=ours.on_cpu if on_cpu else None)
        compiled = program.compile(first, *ours.shared)
    return compiled, lambda: jax.block_until_ready(program((next(keys), ours.member), *ours.shared)), traces


def _fastest_threads(reference: Callable[[], object]) -> int:
    """The faster of one thread and all cores: on a busy machine, several threads can be slower than one."""

    def fastest(threads: int) -> float:
        with threadpool_limits(threads):
            ends, times = time.perf_counter() + SHORTEST, [seconds_per_call(reference)]
            while time.perf_counter() < ends:
                times.append(seconds_per_call(reference))
        return min(times)

    return min((1, os.cpu_count() or 1), key=fastest)


def _settled(function: Callable[[], object], calls: int) -> float:
    """Seconds per call, after a pause: threads of BLAS and OpenMP spin for about 25 ms after their work."""
    time.sleep(PAUSE)
    return seconds_per_call(function, calls)


def _calls(function: Callable[[], object]) -> int:
    """Number of calls per measurement, at most 1,000; short functions are also warmed up."""
    if seconds_per_call(function) > 5 * SHORTEST:
        return 1
    return max(1, min(1_000, int(SHORTEST / max(seconds_per_call(function), 1e-9)) + 1))


def _peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes of temporaries and results on all devices; 0 where the backend does not report them."""
    memory = compiled.memory_analysis()
    if memory is None:
        return 0
    shardings = jax.tree.leaves(compiled.output_shardings)
    devices = {device for sharding in shardings for device in sharding.device_set}
    return len(devices) * (memory.temp_size_in_bytes + memory.output_size_in_bytes)
