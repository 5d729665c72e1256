"""Models on decorrelated inputs, with R applied before their products, and weights with R folded in."""

from collections.abc import Callable
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
from lax_learning.decorrelation._transform import State, check_state
from lax_learning.models import Model, check_model, check_where, selects
from lax_learning.types import Params, Where

Layers = dict[str, State]
"""States of decorrelation, by the path of the first parameter that reads the data value."""


class Place(NamedTuple):
    """A data value with its own R: the products that read it, all of one layout, and stacked layers."""

    sites: list[Site]
    lead: tuple[int, ...]

    @property
    def layout(self) -> Layout:
        layout = self.sites[0].layout
        assert layout is not None
        return layout

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the vectors, without the axis that counts them."""
        return *self.lead, *self.layout.groups, self.layout.size

    def vectors(self, x: Array) -> Array:
        """Returns the operands of all steps as vectors, `[*lead, *groups, vectors, size]`."""
        stacked = self.sites[0].stacked
        take = self.layout.vectors
        for _ in stacked:
            take = jax.vmap(take)
        found = take(x)  # [*steps, *groups, vectors, size]
        layers = [axis for axis, flag in enumerate(stacked) if flag]
        times = [axis for axis, flag in enumerate(stacked) if not flag]
        order = (*layers, *range(len(stacked), found.ndim - 2), *times, found.ndim - 2, found.ndim - 1)
        return jnp.transpose(found, order).reshape(*self.shape[:-1], -1, self.shape[-1])


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
            names[free_name(paths[0], names)] = found[key] = Place([], lead)
        found[key].sites.append(site)
    if not names:
        raise ValueError(
            "where: expected to select a product or convolution of parameters with data, "
            f"got {where!r}, which selects none of {program.split.parameter_paths}"
        )
    return names


def checked_places(program: Program, where: Where, layers: Any) -> dict[str, Place]:
    """Returns the places of a model; raises unless the states fit them."""
    places = places_of(program, where)
    if not isinstance(layers, dict) or layers.keys() != places.keys():
        got = sorted(layers) if isinstance(layers, dict) else type(layers).__name__
        raise ValueError(f"state.layers: expected the entries {sorted(places)}, as from init, got {got}")
    for name, place in places.items():
        check_state(f"state.layers[{name!r}]", layers[name], (*place.shape, place.shape[-1]))
    return places


def wrap(model: Model, layers: Layers, *, where: Where = None) -> Model:
    """Returns the model with decorrelated inputs: `op(w, R x)` instead of every product `op(w, x)`.

    The params of the model stay the same. `layers`, from a `RuleState`, are treated as constants; `where` is
    as for `rule`. A convolution runs with one fused kernel, `w R` on its patches.
    """
    check_model(model)
    check_where("where", where)

    def apply(params: Params, x: Any) -> Any:
        output, aux, _ = _run(Program(model, params, x), where, layers, x)[0]
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
    (_, _, emitted), places = _run(Program(model, params, x), where, layers, x, emit=True)
    read = {name: place.vectors(emitted[place.sites[0].index][1]) for name, place in places.items()}
    return jax.lax.stop_gradient(read)


def _run(
    program: Program, where: Where, layers: Layers, x: Any, emit: bool = False
) -> tuple[tuple[Any, Any, dict[int, Any]], dict[str, Place]]:
    """Runs a model on decorrelated inputs; with `emit`, each place's first product emits its operands."""
    places = checked_places(program, where, layers)
    first = frozenset(place.sites[0].index for place in places.values())
    hooks = Hooks(product=_product, operands=first if emit else frozenset())
    feeds = {
        site.index: (layers[name].R, getattr(layers[name], "b", None))
        for name, place in places.items()
        for site in place.sites
    }
    return program.run(program.split.parameters, x, hooks, feeds=feeds), places


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
    program = Program(model, params, as_batch(x, only_shapes=True)[0])
    places = checked_places(program, where, layers)
    leaves = list(program.split.leaves)
    for name, layer in layers.items():
        if getattr(layer, "b", None) is not None:
            expected = "no bias b, which cannot be folded into weights"
            raise ValueError(f"layers[{name!r}]: expected {expected}, got one")
    for site, name in ((site, name) for name, place in places.items() for site in place.sites):
        names = ", ".join(repr(program.split.paths[i]) for i in sorted(site.leaves))
        readers = [other for other in program.plan.all_sites if other.leaves & site.leaves]
        leaf = min(site.leaves)
        alone = len(site.leaves) == len(readers) == 1
        operand, restore = _operand(program, leaves, leaf, site) if alone else (leaves[leaf], None)
        if restore is None:
            raise ValueError(
                f"params: expected parameters that a single product uses directly, got {names}, used several "
                "times, or changed (such as normalised) before the product, so that R cannot be folded in"
            )
        leaves[leaf] = restore(_folded(site, jnp.asarray(layers[name].R), operand)).astype(leaves[leaf].dtype)
    return jax.tree.unflatten(program.split.structure, leaves)


def _folded(site: Site, r: Array, w: Array) -> Array:
    """Returns `R^T w`, for every stacked layer."""
    layout = site.layout
    assert layout is not None

    def fold_one(r: Array, w: Array) -> Array:
        matrix = layout.matrix(w)
        dtype = raised(matrix, r)
        return layout.unmatrix((jnp.swapaxes(r, -1, -2).astype(dtype) @ matrix.astype(dtype)).astype(w.dtype))

    for flag in site.stacked:
        fold_one = jax.vmap(fold_one) if flag else fold_one
    return fold_one(r, w)


def _operand(
    program: Program, leaves: list[Array], leaf: int, site: Site
) -> tuple[Array, Callable[[Array], Array] | None]:
    """Returns a parameter as its product reads it, `[*lead, ...]`, and the inverse map if there is one."""
    rng = np.random.default_rng(0)
    x = [made_up(rng, like) for like in program.x]

    def operand(own: list[Array]) -> Array:
        parameters = [each for each, trained in zip(own, program.split.trained, strict=True) if trained]
        _, _, emitted = program.run(parameters, x, Hooks(operands=frozenset({site.index})))
        w, _ = emitted[site.index]
        for axis, stacked in reversed(list(enumerate(site.stacked))):
            w = w if stacked else jax.lax.index_in_dim(w, 0, axis, keepdims=False)
        return w

    def at(others: list[Array]) -> Callable[[Array], Array]:
        return jax.jit(lambda value: operand([*others[:leaf], value, *others[leaf + 1 :]]))

    found, back = jax.vjp(at(leaves), leaves[leaf])
    with jax.ensure_compile_time_eval():  # on random values, as the weights may be traced
        probes = [made_up(rng, like) for like in leaves]
        moved, pull = jax.vjp(at(probes), probes[leaf])
        same = jnp.array_equal(pull(moved)[0], probes[leaf])
        # Reshapes and transposes are odd functions; `abs` is not.
        same &= jnp.array_equal(at(probes)(-probes[leaf]), -moved)
    if isinstance(same, Tracer):
        raise ValueError("params: expected concrete weights, got traced ones; fold outside of jit")
    return found, (lambda w: back(w)[0]) if same else None
