"""Times of a compiled program, of a reference and of what the machine can do, taken in turn."""

import os
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from statistics import median, quantiles
from typing import Any, NamedTuple

import jax
from threadpoolctl import threadpool_limits

import lax_learning as ll
from benchmarks.floors import Floors, measured_floors
from benchmarks.kernels import kernel_seconds
from benchmarks.work import Work, work_of

SHORTEST = 0.2
"""Seconds that a measurement takes at least; shorter calls are repeated within it."""
PAUSE = 0.05
"""Seconds before each measurement."""
EXPLAINED = 0.5
"""A share of the floor below this has its kernels measured."""
MOST_SPREAD, TIMES = 0.2, 3
"""A measurement that spreads more, or has a share above 1, is taken again: so often in all."""


class Ours(NamedTuple):
    """A program in JAX, the library's or an expert's, for one seed or for many by `lax_learning.ensemble`.

    Fields:
      one: `(key, member, *shared) -> results` of one seed; it is compiled here.
      member: what a seed has of its own; with several seeds its leaves have a leading axis of seeds.
      shared: what all seeds share.
      seeds: their number.
      pieces: pieces of work, an update for example, that one call does for each seed.
      on_cpu: how many seeds run side by side on a core, `batch_size` of the ensemble, while their weights are
        in its cache; by default all. An accelerator has all side by side.
    """

    one: Callable[..., Any]
    member: Any
    shared: tuple[Any, ...] = ()
    seeds: int = 1
    pieces: int = 1
    on_cpu: int | None = None


class Comparison(NamedTuple):
    """Result of a measurement; seconds are those of one piece of work, the medians over the repeats.

    Fields:
      ours_s: of the library, for one of its seeds.
      reference_s: of the reference.
      floor_share: of the time of the library's program that this machine needs at least.
      compile_s: seconds to trace, lower and compile the program, apart from the others.
      peak_mb: temporaries and results of the program, 10^6 bytes.
      seed_mb: the same for one of its seeds, with what the seed has of its own.
      reference_threads: threads of the reference; it gets as many as are fastest.
      spread: distance of the quarter points of the ratio over the repeats, relative to its median.
      kernels_share: of the time of the program that its products and draws take by themselves, if the share
        of the floor is below `EXPLAINED`.
    """

    ours_s: float
    reference_s: float
    floor_share: float
    compile_s: float
    peak_mb: float
    seed_mb: float
    reference_threads: int
    spread: float
    kernels_share: float | None = None

    @property
    def is_doubtful(self) -> bool:
        """Whether the machine did other things meanwhile: no share is above 1."""
        return self.floor_share > 1 or self.spread > MOST_SPREAD

    @property
    def ratio(self) -> float:
        """Speed of the library relative to the reference."""
        return self.reference_s / self.ours_s


class _Program(NamedTuple):
    """The compiled program, how to call it, and how often its function was traced."""

    compiled: jax.stages.Compiled
    call: Callable[[], Any]
    traces: Callable[[], int]


Reference = Callable[[], object] | Ours
"""A call that does one piece of work for one seed, or a program of one seed."""


def compare(
    ours: Ours, reference: Reference, repeats: int, floors: Callable[[], Floors] = measured_floors
) -> Comparison:
    """Times both and the floors in turn, so that what else the machine does falls on all.

    What comes out doubtful is measured again, `TIMES` in all, and the least spread is kept.

    Args:
      ours: the library's program. Every call gets keys of its own.
      reference: what it is compared with.
      repeats: measurements of each, at least 1.
      floors: measures what this machine can do.

    Raises:
      ValueError: for fewer than one repeat.
      RuntimeError: if a further call traces the program again.
    """
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, got {repeats}")
    began = time.perf_counter()
    program = _compiled(ours)
    compile_s = time.perf_counter() - began
    traces = program.traces()

    if isinstance(reference, Ours):
        theirs, pieces, threads = _blocking(_compiled(reference)), reference.pieces, os.cpu_count() or 1
    else:
        theirs, pieces, threads = reference, 1, _fastest_threads(reference)
    traced = jax.jit(ours.one).trace(jax.random.key(0), _member(ours), *ours.shared)
    work = Work().plus(work_of(traced), ours.seeds)
    results = jax.eval_shape(ours.one, jax.random.key(0), _member(ours), *ours.shared)
    moved = num_bytes((ours.member, ours.shared)) + ours.seeds * num_bytes(results)
    peak = peak_bytes(program.compiled)
    of_seed = (peak + num_bytes(ours.member)) / ours.seeds

    def measured() -> Comparison:
        turns = [
            [_settled(function, n) for function, n in pairs] + [floors().seconds(work, moved)]
            for _ in range(repeats)
        ]
        of_call, of_reference, _ = (median(column) for column in zip(*turns, strict=True))
        return Comparison(
            of_call / (ours.pieces * ours.seeds), of_reference / pieces,
            median(floor / call for call, _, floor in turns), compile_s, peak / 1e6, of_seed / 1e6, threads,
            _spread([reference / call for call, reference, _ in turns]),
        )  # fmt: skip

    with threadpool_limits(threads):
        pairs = [(function, _calls(function)) for function in (_blocking(program), theirs)]
        found = [measured()]
        while found[-1].is_doubtful and len(found) < TIMES:
            found.append(measured())
    if program.traces() != traces:
        raise RuntimeError(f"expected {traces} traces of the program, got {program.traces()}")
    best = least_doubtful(found)
    if best.floor_share >= EXPLAINED:
        return best
    kernels = kernel_seconds(traced, floors()) / (ours.pieces * best.ours_s)
    return best._replace(kernels_share=kernels)


def least_doubtful(found: Sequence[Comparison]) -> Comparison:
    """The one with the least spread of those that are not doubtful, or of all."""
    return min(found, key=lambda each: (each.is_doubtful, each.spread))


def _spread(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    quarter, middle, three_quarters = quantiles(values, n=4)
    return (three_quarters - quarter) / middle


def _blocking(program: _Program) -> Callable[[], object]:
    return lambda: jax.block_until_ready(program.call())


def _member(ours: Ours) -> Any:
    """Shapes of what one seed has of its own."""
    drop = 0 if ours.seeds == 1 else 1
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[drop:], leaf.dtype), ours.member)


def _compiled(ours: Ours) -> _Program:
    traces = 0

    def counted(each: tuple[Any, Any], *shared: Any) -> Any:
        nonlocal traces
        traces += 1
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
    return _Program(compiled, lambda: program((next(keys), ours.member), *ours.shared), lambda: traces)


def _fastest_threads(reference: Callable[[], object]) -> int:
    """One or all cores: libraries that share work among threads lose by it where others use the machine."""

    def fastest(threads: int) -> float:
        with threadpool_limits(threads):
            ends, times = time.perf_counter() + SHORTEST, [_seconds(reference, 1)]
            while time.perf_counter() < ends:
                times.append(_seconds(reference, 1))
        return min(times)

    return min((1, os.cpu_count() or 1), key=fastest)


def _settled(function: Callable[[], object], calls: int) -> float:
    """The same after a pause: threads of BLAS and OpenMP spin on for some 25 ms, and would take a core."""
    time.sleep(PAUSE)
    return _seconds(function, calls)


def _seconds(function: Callable[[], object], calls: int) -> float:
    """Seconds a call."""
    began = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - began) / calls


def _calls(function: Callable[[], object]) -> int:
    """Number of calls that fill a measurement; 1 000 at most. Also warms up, unless a call is long."""
    if _seconds(function, 1) > 5 * SHORTEST:
        return 1
    return max(1, min(1_000, int(SHORTEST / max(_seconds(function, 1), 1e-9)) + 1))


def num_bytes(tree: Any) -> int:
    """Bytes of all leaves. What a program must move at least: its arguments once and its results once.

    XLA's `bytes accessed` counts what goes from one fused loop to the next too, which a cache may hold (one
    weight perturbation of 1.6 MB of weights: 92 MB on a CPU), and bodies of loops once: no bound.
    """
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes of temporaries and results on all devices; 0 where the backend does not tell."""
    memory = compiled.memory_analysis()
    if memory is None:
        return 0
    devices = {
        device for sharding in jax.tree.leaves(compiled.output_shardings) for device in sharding.device_set
    }
    return len(devices) * (memory.temp_size_in_bytes + memory.output_size_in_bytes)
