"""Separate timing of a program's matrix products and random draws, to explain a time far above the floor."""

import math
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.floors import Floors
from benchmarks.pairs import seconds_per_call
from benchmarks.work import Work, equations_of, work_of_equation

FLOPS, CACHE, REPEATS = 1e8, 1e6, 5
"""Approximate operations per measurement, bytes of all operands, and number of measurements."""


def kernel_seconds(traced: jax.stages.Traced, floors: Floors) -> float:
    """Returns the seconds of all products at their own shapes, one after another, plus those of all draws.

    The floor instead assumes the rate of large square products, and draws that overlap with them.
    """
    products, drawn, of_shape = defaultdict[Any, float](float), Work(), dict[Any, Any]()
    for equation, times in equations_of(traced):
        work = work_of_equation(equation)
        if work.flops:
            shape = (*(str(v.aval) for v in equation.invars), str(equation.params))
            of_shape[shape] = equation
            products[shape] += times
        drawn = drawn.plus(work._replace(flops=0.0), times)
    of_draws = drawn.normals / floors.normals + max(0.0, drawn.words - drawn.normals) / floors.words
    return of_draws + sum(times * _seconds(of_shape[shape]) for shape, times in products.items())


def _seconds(equation: Any) -> float:
    """Seconds of one product, measured in a long loop so that the overhead of a call is negligible."""
    like = [v.aval for v in equation.invars]
    size = sum(aval.size * aval.dtype.itemsize for aval in like)
    rounds = math.ceil(FLOPS / work_of_equation(equation).flops)
    others = max(2, int(CACHE / size))  # different operands, so that XLA cannot hoist the product
    operands = [jnp.ones((others, *aval.shape), aval.dtype) for aval in like]

    def product(i: Any, operands: list[jax.Array]) -> Any:
        return equation.primitive.bind(*(each[i % others] for each in operands), **equation.params)

    def run(operands: list[jax.Array]) -> Any:
        start = product(0, operands)
        return jax.lax.fori_loop(0, rounds, lambda i, _: product(i, operands), start)

    program = jax.jit(run)
    jax.block_until_ready(program(operands))
    return min(seconds_per_call(lambda: program(operands)) for _ in range(REPEATS)) / (rounds + 1)
