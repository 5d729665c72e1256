"""Ratio of the times of two compiled programs: many short measurements of both, taken in turn."""

import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import NamedTuple

import jax

SLICE = 0.01
"""Seconds that one measurement of the faster program takes at least."""


class Pairs(NamedTuple):
    """Result of paired measurements.

    Fields:
      ours_s: median seconds a call of the library's program.
      reference_s: the same of the other.
      ratio: median of the ratios ours / reference within the pairs.
      spread: quarter points of these ratios.
      pairs: their number.
    """

    ours_s: float
    reference_s: float
    ratio: float
    spread: tuple[float, float]
    pairs: int


def compare(
    ours: Callable[[], object], reference: Callable[[], object], *, seconds: float, least: int = 7
) -> Pairs:
    """Times both in turn, first the one and then the other by turns.

    Other work on the machine falls on both of a pair, and half of the pairs begin with either.

    Args:
      ours: a call of the library's compiled program.
      reference: a call of the other.
      seconds: that all pairs take together, about.
      least: smallest number of pairs.
    """
    for function in (ours, reference):
        jax.block_until_ready(function())
    calls = max(1, round(SLICE / max(min(_seconds(reference, 1) for _ in range(3)), 1e-9)))
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        order = (ours, reference) if len(times) % 2 else (reference, ours)
        taken = {function: _seconds(function, calls) for function in order}
        times.append((taken[ours], taken[reference]))
    ratios = [a / b for a, b in times]
    quarter, _, three_quarters = quantiles(ratios, n=4)
    return Pairs(
        median(a for a, _ in times),
        median(b for _, b in times),
        median(ratios),
        (quarter, three_quarters),
        len(times),
    )


def _seconds(function: Callable[[], object], calls: int) -> float:
    """Seconds a call."""
    began = time.perf_counter()
    result = None
    for _ in range(calls):
        result = function()
    jax.block_until_ready(result)
    return (time.perf_counter() - began) / calls
