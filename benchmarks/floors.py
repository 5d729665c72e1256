"""Measured limits of this machine, the lower bounds on run times that follow, and times of single kernels."""

import math
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.pairs import seconds_per_call
from benchmarks.work import Work, equations_of, work_of, work_of_equation


class Floors(NamedTuple):
    """Measured limits of this machine."""

    flops: float  # floating-point operations per second, in large float32 matrix products
    bandwidth: float  # bytes read and written per second
    normals: float  # normal random numbers per second
    words: float  # random words of 32 bits per second

    def drawing(self, work: Work) -> float:
        """Returns the seconds of all random draws."""
        return work.normals / self.normals + work.words / self.words

    def seconds(self, work: Work, num_bytes: float) -> float:
        """Returns a lower bound on the time for this work."""
        return max(work.flops / self.flops, num_bytes / self.bandwidth, self.drawing(work))


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


FLOPS, CACHE, REPEATS = 1e8, 1e6, 5
"""Approximate operations per measurement of a kernel, bytes of all operands, and number of measurements."""


def kernel_seconds(traced: jax.stages.Traced, floors: Floors) -> float:
    """Returns the seconds of all products at their own shapes, one after another, plus those of all draws.

    This explains a time far above the floor, which assumes the rate of large square products, and draws that
    overlap with them.
    """
    products, of_shape = defaultdict[Any, float](float), dict[Any, Any]()
    for equation, times in equations_of(traced):
        if work_of_equation(equation).flops:
            shape = (*(str(v.aval) for v in equation.invars), str(equation.params))
            of_shape[shape] = equation
            products[shape] += times
    of_products = sum(times * _seconds(of_shape[shape]) for shape, times in products.items())
    return floors.drawing(work_of(traced)) + of_products


def _seconds(equation: Any) -> float:
    """Seconds of one product, measured in a long loop so that the overhead of a call is negligible."""
    like = [v.aval for v in equation.invars]
    size = sum(aval.size * aval.dtype.itemsize for aval in like)
    rounds = math.ceil(FLOPS / work_of_equation(equation).flops)
    others = max(2, int(CACHE / size))  # different operands, so that XLA cannot hoist the product
    operands = [jnp.ones((others, *aval.shape), aval.dtype) for aval in like]

    def product(i: Any, operands: list[jax.Array]) -> Any:
        return equation.primitive.bind(*(each[i % others] for each in operands), **equation.params)

    @jax.jit
    def run(operands: list[jax.Array]) -> Any:
        start = product(0, operands)
        return jax.lax.fori_loop(0, rounds, lambda i, _: product(i, operands), start)

    jax.block_until_ready(run(operands))
    return min(seconds_per_call(lambda: run(operands)) for _ in range(REPEATS)) / (rounds + 1)
