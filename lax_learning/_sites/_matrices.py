"""Parameters that products read unmodified, so that a low-rank change need not be multiplied out."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from lax_learning._sites._plan import Value
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


def direct_matrices(program: Program) -> dict[int, Matrix]:
    """Returns the parameters that only products use, and always as the same matrix.

    Keys are positions among the leaves. Parameters that are reshaped, normalised, gathered from or used in
    two ways are left out.
    """
    uses = {i: set(_uses(value, 0)) for i, value in enumerate(program.plan.ins) if value.kind.is_param}
    return {i: matrix for i, of_leaf in uses.items() if len(of_leaf) == 1 and (matrix := of_leaf.pop())}


def _uses(value: Value, stacked: int) -> Iterator[Matrix | None]:
    """Yields how a parameter is read, as a matrix or None; its first `stacked` axes are steps of scans."""
    for operation in value.readers:
        if operation is None or operation.inner is None:
            layout = operation and operation.site and operation.site.layout
            is_matrix = layout and layout.rows and layout.columns and not layout.groups
            yield Matrix(stacked, layout.rows, layout.columns) if layout and is_matrix else None
            continue
        _, carry, steps = operation.places
        for place, inside in enumerate(operation.inner.ins):
            if operation.ins[place] is value:
                yield from [None] if place in carry else _uses(inside, stacked + (place in steps))
