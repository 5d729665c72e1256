"""Parameters that products read unmodified, so that a low-rank change need not be multiplied out."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from lax_learning._sites import _equations as equations
from lax_learning._sites._plan import Operation, Plan
from lax_learning._sites._program import Program


class Matrix(NamedTuple):
    """Axes of a parameter, as its products use them."""

    stacked: int  # number of leading axes that are steps of scans
    rows: tuple[int, ...]  # axes that products sum over, counted after the stacked ones
    columns: tuple[int, ...]  # the other axes, counted likewise

    def rows_of(self, w: Array) -> Array:
        """Returns the parameter as `[matrices, rows, columns]`."""
        lead, inner = w.shape[: self.stacked], w.shape[self.stacked :]
        order = [*range(self.stacked), *(self.stacked + axis for axis in (*self.rows, *self.columns))]
        size = math.prod(inner[axis] for axis in self.rows)
        return jnp.transpose(w, order).reshape(math.prod(lead), size, -1)


Held = dict[int, tuple[int, int]]
"""For every variable, the leaf it holds, and how many of its axes are steps of enclosing scans."""


def direct_matrices(program: Program) -> dict[int, Matrix]:
    """Returns the parameters that only products use, and always as the same matrix.

    Keys are positions among the leaves. Parameters that are reshaped, normalised, gathered from or used in
    two ways are left out.
    """
    found: dict[int, Matrix | None] = {}

    def use(leaf: int, matrix: Matrix | None) -> None:
        found[leaf] = matrix if found.get(leaf, matrix) == matrix else None

    plan = program.plan
    _walk(plan, {var: (i, 0) for i, var in enumerate(plan.ins) if plan.kinds[var].is_param}, use)
    return {leaf: matrix for leaf, matrix in found.items() if matrix is not None}


def _walk(plan: Plan, held: Held, use: Callable[[int, Matrix | None], None]) -> None:
    """Reports every use of the variables that hold a parameter."""
    for operation in plan.operations:
        mine = {place: held[var] for place, var in enumerate(operation.ins) if var in held}
        if operation.inner is None:
            for place, (leaf, stacked) in mine.items():
                use(leaf, _matrix(operation, place, stacked))
            continue
        carried, steps = [], []
        if operation.is_scan:
            _, carried, steps = equations.split_scan(operation.equation, range(len(operation.ins)))
        inside: Held = {}
        for place, (leaf, stacked) in mine.items():
            if place in carried:
                use(leaf, None)
            else:
                inside[operation.inner.ins[place]] = leaf, stacked + (place in steps)
        _walk(operation.inner, inside, use)
    for var in plan.outs:
        if var in held:
            use(held[var][0], None)


def _matrix(operation: Operation, place: int, stacked: int) -> Matrix | None:
    layout = operation.site.layout if operation.site is not None else None
    if layout is None or place not in operation.params or layout.groups:
        return None
    return Matrix(stacked, layout.rows, layout.columns) if layout.rows and layout.columns else None
