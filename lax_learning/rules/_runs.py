"""Runs of a model for rules: on a batch as it is, or example by example."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from lax_learning._checks import describe
from lax_learning._sites import _equations as equations
from lax_learning._sites._coupling import is_coupled
from lax_learning._sites._plan import Site
from lax_learning._sites._program import Program
from lax_learning._sites._run import Bilinear, Hooks
from lax_learning._sites._transposition import by_transposition
from lax_learning.models import Model
from lax_learning.types import Params

Runner = Callable[..., tuple[Any, dict[int, Any]]]
"""`(parameters, hooks, feeds) -> (output, emitted)`, and of examples `x=` for others of the same shapes."""


def by_example(model: Model, params: Params, x: Any) -> tuple[Program, Runner]:
    """A model traced on one example, and a run of it on every example of a batch.

    Feeds and what is emitted have a leading axis of examples.
    """
    one = jax.tree.map(lambda leaf: leaf[:1], x)
    program = Program(model, params, one)

    def run(parameters: list[Any], hooks: Hooks, feeds: dict[int, Any] | None = None, x: Any = x) -> Any:
        def product(site: Site, op: Bilinear, w: Any, x: Any, partner: Any, feed: Any) -> Any:
            if site.operation in equations.CUSTOM_VJP:
                op = by_transposition(op)
            elif site.layout is not None and site.layout.alone is not None:
                # Sums over two axes, of examples and of one, make XLA transpose the errors in memory.
                op = site.layout.alone
            return op(w, x) if hooks.product is None else hooks.product(site, op, w, x, partner, feed)

        def example(x: Any, feeds: dict[int, Any]) -> Any:
            x = jax.tree.map(lambda leaf: leaf[None], x)
            output, _, emitted = program.run(parameters, x, hooks._replace(product=product), feeds=feeds)
            return jax.tree.map(_only, output), emitted

        return jax.vmap(example)(x, feeds or {})

    return program, run


def _only(leaf: Array) -> Array:
    if leaf.shape[:1] != (1,):
        raise ValueError(
            f"apply: expected an output with a leading axis of examples as x, got {describe(leaf)}"
        )
    return leaf[0]


def by_batch(model: Model, params: Params, x: Any) -> tuple[Program, Runner]:
    """A model traced on a batch, and a run of it on the batch."""
    program = Program(model, params, x)

    def run(parameters: list[Any], hooks: Hooks, feeds: dict[int, Any] | None = None) -> Any:
        output, _, emitted = program.run(parameters, x, hooks, feeds=feeds)
        return output, emitted

    return program, run


def check_uncoupled(model: Model, params: Params, x: Any, remedy: str) -> None:
    """Raises ValueError if the examples of a batch depend on each other."""
    if is_coupled(model, params, x):
        raise ValueError(
            "apply: expected a model in which each output depends on its own example alone, as credit by "
            "example needs, got one that couples the examples of a batch, as BatchNorm in training does; "
            f"{remedy}"
        )
