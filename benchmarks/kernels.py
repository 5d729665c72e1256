"""Time of the products and draws of a program by themselves: what a low share of the floor is made of."""

import math
import time
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.floors import Floors
from benchmarks.work import Work, equations_of, work_of_equation

FLOPS, CACHE, REPEATS = 1e8, 1e6, 5
"""Operations of a measurement and bytes of its operands, about, and how often it is taken."""


def kernel_seconds(traced: jax.stages.Traced, floors: Floors) -> float:
    """Seconds of all products at their own shapes, one after another, and then of all draws.

    The floor takes products at the rate of large square ones, and draws numbers meanwhile.
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
    """Seconds of a product in a loop over many, as in training, so that a call costs nothing of it."""
    like = [v.aval for v in equation.invars]
    size = sum(aval.size * aval.dtype.itemsize for aval in like)
    rounds = math.ceil(FLOPS / work_of_equation(equation).flops)
    others = max(2, int(CACHE / size))  # so that no round can be left out
    operands = [jnp.ones((others, *aval.shape), aval.dtype) for aval in like]

    def product(i: Any, operands: list[jax.Array]) -> Any:
        return equation.primitive.bind(*(each[i % others] for each in operands), **equation.params)

    def run(operands: list[jax.Array]) -> Any:
        start = product(0, operands)
        return jax.lax.fori_loop(0, rounds, lambda i, _: product(i, operands), start)

    program, times = jax.jit(run), []
    jax.block_until_ready(program(operands))
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(program(operands))
        times.append(time.perf_counter() - began)
    return min(times) / (rounds + 1)
