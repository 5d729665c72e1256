"""A model traced at params and a batch, ready to run with taps, partners and cuts."""

from collections.abc import Collection
from itertools import count
from typing import Any

import jax

from lax_learning._checks import as_arrays, check_values
from lax_learning._sites import _equations as equations
from lax_learning._sites._plan import Kind, Plan, Tap, make_plan
from lax_learning._sites._run import Hooks, execute
from lax_learning.models import Model, Split


def free_name(path: str, taken: Collection[str]) -> str:
    """Returns a path, numbered if it is taken."""
    names = (f"{path}#{number}" if number > 1 else path for number in count(1))
    return next(name for name in names if name not in taken)


class Program:
    """A traced model.

    Attributes:
      split: which leaves of params are parameters.
      x: shapes and types of the leaves of x.
      plan: sites, taps and reads.
      outputs: shapes and types of the outputs.
    """

    def __init__(self, model: Model, params: Any, x: Any) -> None:
        self.split = Split(model, params)
        leaves, self._x = jax.tree.flatten(x)
        self.x = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
        kinds = [Kind(frozenset({i})) if trained else Kind() for i, trained in enumerate(self.split.trained)]

        def flat(leaves: list[Any], x: list[Any]) -> Any:
            params = jax.tree.unflatten(self.split.structure, leaves)
            output, aux = model(params, jax.tree.unflatten(self._x, x))
            return as_arrays("apply", output), as_arrays("aux", aux)

        try:
            body, (output, aux) = equations.trace(flat, self.split.leaves, leaves)
        except (TypeError, ValueError) as error:
            if all(leaf.ndim == 1 for leaf in leaves):
                error.add_note("x: its first axis is that of examples; each has the shape [] here")
            raise
        self.outputs = jax.tree.leaves(output)
        self._output, self._aux = jax.tree.structure(output), jax.tree.structure(aux)
        self.plan: Plan = make_plan(
            body, [*kinds, *[Kind(data=True)] * len(leaves)], num_outputs=self._output.num_leaves
        )
        for site in self.plan.all_sites:
            if site.operation == "while":
                names = ", ".join(repr(self.split.paths[i]) for i in sorted(site.leaves))
                raise ValueError(
                    f"apply: expected no parameter inside a while loop, got {names} at "
                    f"{site.source or 'an unknown line'}: no credit comes back through a loop of unknown "
                    "length; use a scan, or a fori_loop of fixed length"
                )

    @property
    def named_taps(self) -> dict[str, Tap]:
        """Taps by the path of their first parameter; those that share it are numbered."""
        named: dict[str, Tap] = {}
        for tap in self.plan.all_taps:
            first = min(tap.sites, key=lambda site: (not site.products, site.index))
            named[free_name(self.split.paths[min(first.leaves)], named)] = tap
        return named

    def run(
        self,
        parameters: list[Any],
        x: Any,
        hooks: Hooks,
        *,
        feeds: dict[int, Any] | None = None,
        feedback: list[Any] | None = None,
    ) -> tuple[Any, Any, dict[int, Any]]:
        """Runs the model on other values of its parameters.

        Args:
          parameters: the trained leaves.
          x: a batch of the shapes that were traced.
          hooks: what happens at sites.
          feeds: what is fed to taps, by index.
          feedback: partners of the trained leaves; None where a parameter is its own.

        Returns:
          Output, aux, and what taps and reads emitted, by index.
        """
        params = self.split.merge(parameters)
        check_values("params", params)
        leaves = jax.tree.leaves(params)
        inputs = jax.tree.leaves(x)
        partners: list[Any] = [None] * (len(leaves) + len(inputs))
        if feedback is not None:
            own = zip(parameters, feedback, strict=True)
            values = iter([parameter if mate is None else mate for parameter, mate in own])
            partners[: len(leaves)] = [next(values) if trained else None for trained in self.split.trained]
        results, _, emitted = execute(self.plan, [*leaves, *inputs], partners, hooks, feeds or {})
        number = self._output.num_leaves
        output = jax.tree.unflatten(self._output, results[:number])
        return output, jax.tree.unflatten(self._aux, results[number:]), emitted
