"""Ratio of the times of two compiled programs, from many short measurements of both in alternation."""

import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import NamedTuple

import jax

SLICE = 0.01
"""Minimum duration of a measurement of the reference, in seconds."""
LEAST = 7
"""Minimum number of pairs."""


class Pairs(NamedTuple):
    """Result of paired measurements."""

    ours_s: float  # median seconds per call of the library's program
    reference_s: float  # the same for the reference
    ratio: float  # median of ours / reference within pairs
    spread: tuple[float, float]  # quartiles of these ratios
    pairs: int  # number of pairs


def compare(ours: Callable[[], object], reference: Callable[[], object], *, seconds: float) -> Pairs:
    """Times calls of two compiled programs alternately for about `seconds`, so that other load affects both.

    Every second pair starts with `ours`.
    """
    for function in (ours, reference):
        jax.block_until_ready(function())
    calls = max(1, round(SLICE / max(min(seconds_per_call(reference) for _ in range(3)), 1e-9)))
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(times) < LEAST or time.perf_counter() < end:
        order = (ours, reference) if len(times) % 2 else (reference, ours)
        taken = {function: seconds_per_call(function, calls) for function in order}
        times.append((taken[ours], taken[reference]))
    ratios = [a / b for a, b in times]
    quarter, _, three_quarters = quantiles(ratios, n=4)
    of_ours, of_reference = (median(column) for column in zip(*times, strict=True))
    return Pairs(of_ours, of_reference, median(ratios), (quarter, three_quarters), len(times))


def seconds_per_call(function: Callable[[], object], calls: int = 1) -> float:
    """Calls a function repeatedly, waits for its last result, and returns seconds per call."""
    began, result = time.perf_counter(), None
    for _ in range(calls):
        result = function()
    jax.block_until_ready(result)
    return (time.perf_counter() - began) / calls
