"""Models on decorrelated inputs, with R applied before their products, and weights with R folded in."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from lax_learning._precision import raised
from lax_learning._sites._batch import as_batch
from lax_learning._sites._coupling import made_up
from lax_learning._sites._plan import Site
from lax_learning._sites._products import Layout
from lax_learning._sites._program import Program, free_name
from lax_learning._sites._run import Bilinear, Hooks
from lax_learning.decorrelation._transform import State, checked_state
from lax_learning.models import Model, check_model, check_where, selects
from lax_learning.types import Params, Where

Layers = dict[str, State]
"""States of decorrelation, by the path of the first parameter that reads the data value."""


class Place(NamedTuple):
    """A data value with its own R."""

    layout: Layout  # of the products that read it
    shape: tuple[int, ...]  # of its vectors, `[*stacked layers, *groups, size]`
    sites: list[Site]  # the products that read it

    def vectors(self, x: Array) -> Array:
        """Returns the operands of all steps as vectors, `[*stacked layers, *groups, vectors, size]`."""
        take, layers = self.layout.vectors, 0
        for is_layer in reversed(self.sites[0].stacked):  # steps in time go behind layers and groups
            take = jax.vmap(take, out_axes=0 if is_layer else layers + len(self.layout.groups))
            layers += is_layer
        return take(x).reshape(*self.shape[:-1], -1, self.shape[-1])


Matched = dict[str, tuple[Place, Array, Array | None]]
"""Places with their R, and b or None, by name."""


def places_of(program: Program, where: Where) -> dict[str, Place]:
    """Returns the data values that selected products and convolutions read, by name."""
    reads = {read.index: read for read in program.plan.all_reads}
    found: dict[Any, Place] = {}
    names: dict[str, Place] = {}
    for site in program.plan.all_sites:
        paths = [program.split.paths[i] for i in sorted(site.leaves)]
        if site.layout is None or not any(selects(where, path) for path in paths):
            continue
        if not site.reads:
            raise ValueError(
                f"x: expected floating-point numbers, for R to multiply, got another dtype at {paths[0]!r}"
            )
        read, layout = reads[site.reads[0]], site.layout
        key = (read.index, site.stacked, layout.groups, layout.size, layout.window, layout.axes)
        if key not in found:
            lead = tuple(n for n, flag in zip(read.shape, site.stacked, strict=False) if flag)
            place = Place(layout, (*lead, *layout.groups, layout.size), [])
            names[free_name(paths[0], names)] = found[key] = place
        found[key].sites.append(site)
    if not names:
        raise ValueError(
            "where: expected to select a product or convolution of parameters with data, "
            f"got {where!r}, which selects none of {program.split.parameter_paths}"
        )
    return names


def _traced(model: Model, params: Params, layers: Any, x: Any, where: Where) -> tuple[Program, Matched]:
    """Traces a model and matches its places with their R and b; raises unless they fit."""
    program = Program(model, params, x)
    places = places_of(program, where)
    if not isinstance(layers, dict) or layers.keys() != places.keys():
        got = sorted(layers) if isinstance(layers, dict) else type(layers).__name__
        raise ValueError(f"state.layers: expected the entries {sorted(places)}, as from init, got {got}")
    matched: Matched = {}
    for name, place in places.items():
        shape = (*place.shape, place.shape[-1])
        matched[name] = place, *checked_state(f"state.layers[{name!r}]", layers[name], shape)
    return program, matched


def wrap(model: Model, layers: Layers, *, where: Where = None) -> Model:
    """Returns the model with decorrelated inputs: `op(w, R x)` instead of every product `op(w, x)`.

    The params of the model stay the same. `layers`, from a `RuleState`, are treated as constants; `where` is
    as for `rule`. A convolution runs with one fused kernel, `w R` on its patches.
    """
    check_model(model)
    check_where("where", where)

    def apply(params: Params, x: Any) -> Any:
        output, aux, _ = _run(*_traced(model, params, layers, x, where), x)
        return (output, aux) if model.has_aux else output

    return Model(apply, model.init, model.has_aux, model.trainable)


def inputs(model: Model, params: Params, layers: Layers, x: Any, *, where: Where = None) -> dict[str, Array]:
    """Returns the inputs of the products of a decorrelated model, before R is applied.

    They are `[..., vectors, size]` by the names of the layers; for convolutions, vectors are patches.

    Args:
      model, params: the model, not wrapped, and its parameters.
      layers: from a `RuleState`.
      x: a batch.
      where: as for `rule`.
    """
    check_model(model)
    check_where("where", where)
    x, _ = as_batch(x)
    program, matched = _traced(model, params, layers, x, where)
    first = {name: place.sites[0].index for name, (place, _, _) in matched.items()}
    _, _, emitted = _run(program, matched, x, frozenset(first.values()))
    read = {name: place.vectors(emitted[first[name]][1]) for name, (place, _, _) in matched.items()}
    return jax.lax.stop_gradient(read)


def _run(
    program: Program, matched: Matched, x: Any, operands: frozenset[int] = frozenset()
) -> tuple[Any, Any, dict[int, Any]]:
    """Runs a model on decorrelated inputs; the products in `operands` emit their operands."""
    feeds = {site.index: (r, b) for place, r, b in matched.values() for site in place.sites}
    hooks = Hooks(product=_product, operands=operands)
    return program.run(program.split.parameters, x, hooks, feeds=feeds)


def _product(site: Site, op: Bilinear, w: Any, x: Any, partner: Any, feed: Any) -> Any:
    if feed is None:
        return op(w, x)
    assert site.layout is not None
    r, b = feed
    # In the dtype of x, so that the model keeps its precision.
    b = None if b is None else jnp.asarray(b, x.dtype)
    return site.layout.transformed(op, w, x, jnp.asarray(r, x.dtype), b)


def fold(model: Model, params: Params, layers: Layers, x: Any, *, where: Where = None) -> Params:
    """Returns equivalent weights that do not need R: the plain model gives the same output with them.

    `w <- R^T w`, for the matrix w of every product and convolution with decorrelated inputs.

    Args:
      model, params: the model, not wrapped, and parameters that were learned on decorrelated inputs.
      layers: from a `RuleState`.
      x: a batch; only its shapes and dtypes are used.
      where: as for `rule`.

    Raises:
      ValueError: if a parameter is used by several operations, or changed before its product, for example
        normalised or scaled, or if decorrelation also removes the mean (`bias=True`).
    """
    check_model(model)
    check_where("where", where)
    program, matched = _traced(model, params, layers, as_batch(x, only_shapes=True)[0], where)
    for name, (_, _, b) in matched.items():
        if b is not None:
            expected = "no bias b, which cannot be folded into weights"
            raise ValueError(f"layers[{name!r}]: expected {expected}, got one")
    sites = {site.index: (site, place.layout, r) for place, r, _ in matched.values() for site in place.sites}
    split, rng = program.split, np.random.default_rng(0)
    x = [made_up(rng, like) for like in program.x]

    @jax.jit
    def operands(parameters: list[Array]) -> dict[int, Array]:
        """Returns parameters as the products read them, `[*lead, ...]`, at the first step in time."""
        _, _, emitted = program.run(parameters, x, Hooks(operands=frozenset(sites)))
        found = {}
        for i, (site, _, _) in sites.items():
            first = tuple(slice(None) if is_layer else 0 for is_layer in site.stacked)
            found[i] = emitted[i][0][first]
        return found

    # If the products read reordered parameters, the derivative of their operands restores the order.
    with jax.ensure_compile_time_eval():  # on random values, as the weights may be traced
        like, restore = jax.vjp(operands, [made_up(rng, leaf) for leaf in split.parameters])
        wanted = jax.tree.map(partial(made_up, rng), like)
        # Of both signs: `abs` changes one of them.
        signs = (wanted, jax.tree.map(jnp.negative, wanted))
        restored = (jax.tree.map(jnp.array_equal, operands(restore(of)[0]), of) for of in signs)
        is_restored = jax.tree.map(jnp.logical_and, *restored)
    for i, (site, _, _) in sites.items():
        if isinstance(is_restored[i], Tracer):
            raise ValueError("params: expected concrete weights, got traced ones; fold outside of jit")
        readers = [other for other in program.plan.all_sites if other.leaves & site.leaves]
        size = sum(split.leaves[leaf].size for leaf in site.leaves)
        if not (len(readers) == len(site.leaves) == 1 and wanted[i].size == size and is_restored[i]):
            names = ", ".join(repr(split.paths[leaf]) for leaf in sorted(site.leaves))
            raise ValueError(
                f"params: expected parameters that a single product uses directly, got {names}, used several "
                "times, or changed (such as normalised) before the product, so that R cannot be folded in"
            )
    w = operands(split.parameters)
    (folded,) = restore({i: _folded(site, layout, r, w[i]) for i, (site, layout, r) in sites.items()})
    read = {leaf for site, _, _ in sites.values() for leaf in site.leaves}
    is_read = [leaf in read for leaf, trained in enumerate(split.trained) if trained]
    new = zip(split.parameters, folded, is_read, strict=True)
    return split.merge([after if chosen else before for before, after, chosen in new])


def _folded(site: Site, layout: Layout, r: Array, w: Array) -> Array:
    """Returns `R^T w`, for every stacked layer."""

    def fold_one(r: Array, w: Array) -> Array:
        matrix = layout.matrix(w)
        dtype = raised(matrix, r)
        return layout.unmatrix((jnp.swapaxes(r, -1, -2).astype(dtype) @ matrix.astype(dtype)).astype(w.dtype))

    for _ in range(sum(site.stacked)):
        fold_one = jax.vmap(fold_one)
    return fold_one(r, w)
