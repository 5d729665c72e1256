"""A model traced at params and a batch, to be run with taps, partners and cuts."""

from collections.abc import Callable, Collection
from functools import partial
from itertools import count
from typing import Any

import jax

from lax_learning._arrays import as_arrays, check_values
from lax_learning._checks import describe
from lax_learning._sites._equations import resized
from lax_learning._sites._plan import Kind, Plan, Site, Tap
from lax_learning._sites._planner import make_plan
from lax_learning._sites._run import Feeds, Hooks, execute
from lax_learning.models import Model, Split


def free_name(path: str, taken: Collection[str]) -> str:
    """Returns a path, with a number appended if it is taken."""
    names = (f"{path}#{number}" if number > 1 else path for number in count(1))
    return next(name for name in names if name not in taken)


class Program:
    """A traced model.

    Attributes:
      split: leaves of params, and which of them are trained.
      x: shapes and dtypes of the leaves of x.
      plan: sites, taps and reads.
      outputs: shapes and dtypes of the outputs.
      by_example: whether it is traced on a batch of one example, to be run on every example separately.
    """

    def __init__(self, model: Model, params: Any, x: Any, *, by_example: bool = False) -> None:
        self.split = Split(model, params)
        self.by_example = by_example
        x = jax.tree.map(lambda leaf: resized(leaf, (1, *leaf.shape[1:])), x) if by_example else x
        self.x = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(x)]

        def results(params: Any, x: Any) -> tuple[Any, Any]:
            output, aux = model(params, x)
            return as_arrays("apply", output), as_arrays("aux", aux)

        try:
            params = self.split.structure.unflatten(self.split.leaves)
            body, (output, aux) = jax.make_jaxpr(results, return_shape=True)(params, x)
        except (TypeError, ValueError) as error:
            if all(leaf.ndim == 1 for leaf in self.x):
                error.add_note("x: the first axis is that of examples; here, each example has shape []")
            raise
        self.outputs: list[jax.ShapeDtypeStruct] = jax.tree.leaves(output)
        self._output, self._aux = jax.tree.structure(output), jax.tree.structure(aux)
        kinds = [Kind(frozenset({i})) if trained else Kind() for i, trained in enumerate(self.split.trained)]
        kinds += [Kind(data=True)] * len(self.x)
        self.plan: Plan = make_plan(body, kinds, self._output.num_leaves)
        for site in self.plan.all_sites:
            if site.operation == "while":
                got = f"{self.names(site)!r}{site.at_source}"
                raise ValueError(
                    f"apply: expected no parameter inside a while loop, got {got}: credit cannot pass back "
                    "through a loop of unknown length; use a scan, or a fori_loop of fixed length"
                )

    def names(self, *sites: Site) -> str:
        """Returns the paths of the parameters of sites, for an error message."""
        return ", ".join(self.split.paths[i] for site in sites for i in sorted(site.leaves))

    @property
    def named_taps(self) -> dict[str, Tap]:
        """Taps by the path of their first parameter, with a number if several taps share it."""
        named: dict[str, Tap] = {}
        for tap in self.plan.all_taps:
            first = min(tap.sites, key=lambda site: (not site.products, site.index))
            named[free_name(self.split.paths[min(first.leaves)], named)] = tap
        return named

    def runner(self, hooks: Hooks) -> Callable[..., tuple[Any, Any, Feeds]]:
        """Returns `run` with these hooks on a batch, `(parameters, x, feeds={}) -> (output, aux, emitted)`.

        If traced by example, feeds and emitted values have a leading axis of examples, and aux is None.
        """
        run = partial(self.run, hooks=hooks._replace(by_example=self.by_example))
        return jax.vmap(run, in_axes=(None, 0)) if self.by_example else run

    def run(
        self,
        parameters: list[Any],
        x: Any,
        hooks: Hooks,
        *,
        feeds: Feeds | None = None,
        feedback: list[Any] | None = None,
    ) -> tuple[Any, Any, Feeds]:
        """Runs the model with new values of its parameters.

        Args:
          parameters: values of the trained leaves.
          x: a batch of the traced shapes; if traced by example, one example without the axis of examples.
          hooks, feeds: as in `execute`.
          feedback: partners of the trained leaves; None for a parameter that is its own partner.

        Returns:
          Output, aux, and the values emitted by taps, reads and sites, by index.
        """
        params = self.split.merge(parameters)
        check_values("params", params)
        leaves, inputs = jax.tree.leaves(params), jax.tree.leaves(x)
        inputs = [leaf[None] for leaf in inputs] if self.by_example else inputs
        mates = iter(feedback or [None] * len(parameters))
        partners = [next(mates) if trained else None for trained in self.split.trained]
        partners += [None] * len(inputs)
        results, _, emitted = execute(self.plan, [*leaves, *inputs], partners, hooks, feeds or {})
        number = self._output.num_leaves
        outputs, aux = results[:number], self._aux.unflatten(results[number:])
        if self.by_example:
            outputs, aux = [_only(leaf) for leaf in outputs], None
        return self._output.unflatten(outputs), aux, emitted


def _only(leaf: jax.Array) -> jax.Array:
    if leaf.shape[:1] != (1,):
        raise ValueError(
            f"apply: expected an output with a leading axis of examples as in x, got {describe(leaf)}"
        )
    return leaf[0]
