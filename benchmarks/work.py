"""Least work of a program: operations of its matrix products, and random numbers.

XLA's own count of a compiled program takes the body of a loop once, however often it runs, and does not see
into library calls. Here the traced program is counted, without what nobody uses, loops as often as they run.
"""

from math import prod
from typing import Any, NamedTuple

import jax
from jax.extend import core
from jax.interpreters import partial_eval


class Work(NamedTuple):
    """Amounts of work.

    Fields:
      flops: floating-point operations of matrix products and convolutions, a product and a sum each.
      normals: normal random numbers.
      words: other random numbers of 32 bits.
    """

    flops: float = 0.0
    normals: float = 0.0
    words: float = 0.0

    def plus(self, other: "Work", times: float = 1.0) -> "Work":
        """Both, the other so many times."""
        return Work(*(a + times * b for a, b in zip(self, other, strict=True)))


def work_of(traced: jax.stages.Traced) -> Work:
    """The work of `jax.jit(f).trace(*args)`: of branches the costliest, of unbounded loops one round."""
    jaxpr = traced.jaxpr.jaxpr
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    total = _of_jaxpr(used)
    return total._replace(words=max(0.0, total.words - total.normals))


def _of_jaxpr(jaxpr: Any) -> Work:
    total, first, same = Work(), {}, {}
    for equation in jaxpr.eqns:
        operands = tuple(str(v) if isinstance(v, core.Literal) else same.get(v, v) for v in equation.invars)
        what = equation.primitive.name, str(equation.params), operands
        if what in first:  # XLA does once what is written twice
            same.update(zip(equation.outvars, first[what], strict=True))
            continue
        first[what] = [same.get(v, v) for v in equation.outvars]
        total = total.plus(_of_equation(equation))
        inner = [_of_jaxpr(each) for each in _inner(equation.params)]
        if equation.primitive.name == "cond" and inner:
            inner = [max(inner)]
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for each in inner:
            total = total.plus(each, times)
    return total


def _of_equation(equation: Any) -> Work:
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


def _inner(params: dict[str, Any]) -> list[Any]:
    found = []
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, core.ClosedJaxpr):  # pyright: ignore[reportPrivateImportUsage]
                found.append(each.jaxpr)
            elif isinstance(each, core.Jaxpr):
                found.append(each)
    return found
