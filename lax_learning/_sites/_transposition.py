"""Functions with a user-defined derivative, differentiated so that `vmap` sums over examples."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lax_learning._sites import _equations as equations
from lax_learning._sites._products import Bilinear
from lax_learning._structure import merged

_LINEAR = equations.SHAPES | {"neg", "reduce_sum", "slice"}
"""Operations that are linear in their only operand."""


def by_transposition(op: Bilinear) -> Bilinear:
    """Rewrites a function with a `custom_vjp` so that `vmap` computes no separate gradient per example.

    If the user's derivative `d -> (dw, dx)` is linear in the error, its transpose `(dw, dx) -> dz` is an
    equivalent definition. Under `vmap`, parameters and `dw` have no axis of examples, so differentiating the
    transpose sums over the examples in one product.
    """

    def run(w: Any, x: Any) -> Any:
        operands = (w, x)
        moving = jax.tree.map(lambda leaf: leaf if _is_floating(leaf) else None, operands)

        def of(moving: Any) -> Any:
            return op(*merged(operands, moving))

        @jax.custom_jvp
        def transposed(moving: Any) -> Any:
            return of(moving)

        @transposed.defjvp
        def _(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
            z, pull_back = jax.vjp(of, *primals)
            (change,) = jax.linear_transpose(pull_back, z)(tangents)
            return z, change

        z, pull_back = jax.vjp(of, moving)
        program = jax.make_jaxpr(pull_back)(z).jaxpr
        is_linear = all(map(_is_floating, jax.tree.leaves(z)))
        is_linear = is_linear and all(_linear_results(program, [True] * len(program.invars)))
        return (transposed if is_linear else of)(moving)

    return run


def _is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _linear_results(program: Any, args: Sequence[bool]) -> list[bool]:
    """Returns which results are linear in the marked arguments; none if an operation on them is not."""
    linear = {var for var, marked in zip(program.invars, args, strict=True) if marked}
    for equation in program.eqns:
        name, atoms = equation.primitive.name, equation.invars
        marks = [not equations.is_literal(atom) and atom in linear for atom in atoms]
        if not any(marks):
            is_broadcast = name == "broadcast_in_dim" and equations.is_literal(atoms[0])
            found = [is_broadcast and atoms[0].val == 0]  # zeros are linear in anything
        elif not all(_is_floating(out.aval) for out in equation.outvars):
            return [False] * len(program.outvars)
        elif name in equations.CALLS:
            found = _linear_results(equations.body(equation).jaxpr, marks)
        else:
            found = [
                (name in equations.BILINEAR | {"mul"} and sum(marks) == 1)
                or (name == "div" and marks == [True, False])
                or (name in equations.SUMS and all(marks))
                or (name in _LINEAR and len(marks) == 1)
            ]
        if any(marks) and not all(found):
            return [False] * len(program.outvars)
        linear.update(var for var, marked in zip(equation.outvars, found, strict=False) if marked)
    return [not equations.is_literal(atom) and atom in linear for atom in program.outvars]
