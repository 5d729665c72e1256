"""Lower bound on the work of a program: operations of its matrix products, and random numbers.

Counts the equations of the traced program, without dead code, and loop bodies as often as they run. XLA's own
count of a compiled program includes the body of a loop only once, and no library calls.
"""

import itertools
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import jax
from jax.extend import core
from jax.interpreters import partial_eval

from lax_learning._sites._equations import inner_programs, split_scan


class Work(NamedTuple):
    """Amounts of work."""

    flops: float = 0.0  # floating-point operations of matrix products and convolutions, two per multiply-add
    normals: float = 0.0  # normal random numbers
    words: float = 0.0  # other random numbers of 32 bits


def work_of(traced: jax.stages.Traced) -> Work:
    """Returns the work of `jax.jit(f).trace(*args)`.

    Counts the costliest branch of a `cond`, one round of a `while`, and loop-invariant or repeated equations
    once, as XLA computes them once.
    """
    total = _sum(equations_of(traced))
    return total._replace(words=max(0.0, total.words - total.normals))


Equations = list[tuple[Any, float]]
"""Equations that do work, and how often each one runs."""


def equations_of(traced: jax.stages.Traced) -> Equations:
    """Returns the equations that do this work."""
    jaxpr = traced.jaxpr.jaxpr
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _of_jaxpr(used, _new_values(used.invars, 0), {}, ())[0]


def _sum(equations: Equations) -> Work:
    amounts = [[times * each for each in work_of_equation(equation)] for equation, times in equations]
    return Work(*map(sum, zip(*amounts, strict=True)))


class _Value(NamedTuple):
    """Number of a value, and depth of the innermost loop in which it changes."""

    number: int
    depth: int


_NUMBERS = itertools.count()


def _new_values(variables: Sequence[Any], depth: int) -> list[_Value]:
    return [_Value(next(_NUMBERS), depth) for _ in variables]


def _of_jaxpr(
    jaxpr: Any, given: list[_Value], seen: dict[Any, list[_Value]], rounds: tuple[int, ...]
) -> tuple[Equations, list[_Value]]:
    """Returns equations and results within loops of `rounds`; `seen` has all results so far, by equation."""
    values = dict(zip(jaxpr.constvars, _new_values(jaxpr.constvars, 0), strict=True))
    values |= zip(jaxpr.invars, given, strict=True)

    def value(v: Any) -> _Value:
        return _Value(-1, 0) if isinstance(v, core.Literal) else values[v]

    found: Equations = []
    for equation in jaxpr.eqns:
        operands, name = [value(v) for v in equation.invars], equation.primitive.name
        literals = tuple(str(v) for v in equation.invars if isinstance(v, core.Literal))
        key = name, str(equation.params), tuple(operands), literals
        if key not in seen:
            depth = max((operand.depth for operand in operands), default=0)
            if any(work_of_equation(equation)):
                found.append((equation, prod(rounds[:depth])))
            seen[key] = _new_values(equation.outvars, depth)
            programs = [getattr(each, "jaxpr", each) for each in inner_programs(equation)]
            inner = [_of_inner(equation, each, operands, depth, seen, rounds) for each in programs]
            if name == "cond" and inner:
                inner = [max(inner, key=lambda each: _sum(each[0]))]
            found += itertools.chain.from_iterable(each for each, _ in inner)
            if name == "jit" and inner:
                seen[key] = inner[0][1]
        values.update(zip(equation.outvars, seen[key], strict=True))
    return found, [value(v) for v in jaxpr.outvars]


def _of_inner(
    equation: Any, inner: Any, operands: list[_Value], depth: int, seen: dict[Any, Any], rounds: Any
) -> tuple[Equations, list[_Value]]:
    """Returns equations and results of a jaxpr inside an equation."""
    if equation.primitive.name in ("scan", "while"):
        rounds = (*rounds[:depth], equation.params.get("length", 1))
        held = split_scan(equation, operands)[0] if equation.primitive.name == "scan" else []
        return _of_jaxpr(inner, held + _new_values(inner.invars[len(held) :], depth + 1), seen, rounds)
    if len(inner.invars) == len(operands):
        return _of_jaxpr(inner, operands, seen, rounds)
    return _of_jaxpr(inner, _new_values(inner.invars, depth), dict(seen), rounds)


def work_of_equation(equation: Any) -> Work:
    """Returns the work of one equation, without the jaxprs inside it."""
    if not equation.outvars:
        return Work()
    out: Any = equation.outvars[0].aval
    match equation.primitive.name:
        case "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            return Work(flops=2.0 * prod(out.shape) * prod(shape[axis] for axis in contracted))
        case "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            return Work(flops=2.0 * prod(out.shape) * prod(kernel) / features)
        case "erf_inv":
            return Work(normals=float(prod(out.shape)))
        case "random_bits":
            return Work(words=prod(out.shape) * max(1.0, equation.params["bit_width"] / 32))
        case _:
            return Work()
