"""Table of the sites of a model."""

import math
from typing import Any, NamedTuple

from lax_learning._sites._batch import as_batch, one_example
from lax_learning._sites._program import Program
from lax_learning.models import Model, check_model
from lax_learning.types import Params


class SiteRow(NamedTuple):
    """A site of a model.

    Fields:
      paths: paths of its parameters.
      operation: operation that combines parameters with data, such as `dot_general`.
      shape: shape of the parameters as the operation reads them.
      units: number of pre-activations per example in the sum that the site belongs to, over all steps; 0 if
        its result is not floating-point.
      passes_error: whether errors have to pass through it, so that feedback rules need feedback weights.
      source: line of the model's code.
    """

    paths: tuple[str, ...]
    operation: str
    shape: tuple[int, ...]
    units: int
    passes_error: bool
    source: str


class SiteTable(tuple[SiteRow, ...]):
    """Rows of all sites in program order; prints as a table."""

    def __repr__(self) -> str:
        header = ("parameters", "operation", "shape", "units", "feedback", "source")
        rows = [
            (", ".join(row.paths), row.operation, "x".join(map(str, row.shape)) or "scalar", str(row.units),
             "yes" if row.passes_error else "no", row.source.rsplit("/", 1)[-1])
            for row in self
        ]  # fmt: skip
        lines = [header, *rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = ([cell.ljust(n) for cell, n in zip(line, widths, strict=True)] for line in lines)
        return "\n".join("  ".join(line).rstrip() for line in padded)


def sites(model: Model, params: Params, x: Any) -> SiteTable:
    """Finds the sites of a model: the operations that combine parameters with data, where credit is assigned.

    Returns one row per site, printed as a table. Of params and the batch x, only shapes and dtypes are used.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import lax_learning as ll
      >>> model = ll.Model(lambda p, x: jnp.tanh(x @ p["w"] + p["b"]))
      >>> sites(model, {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}, jnp.ones((5, 3)))[0].shape
      (3, 2)
    """
    check_model(model)
    program = Program(model, params, one_example(as_batch(x, only_shapes=True)[0]))
    units = {id(site): math.prod(tap.shape) for tap in program.plan.all_taps for site in tap.sites}
    return SiteTable(
        SiteRow(
            tuple(program.split.paths[i] for i in sorted(site.leaves)),
            site.operation,
            site.shape,
            units.get(id(site), 0),
            site.passes_error and bool(site.products),
            site.source,
        )
        for site in program.plan.all_sites
    )
