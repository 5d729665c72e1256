"""Plain weights in place of weights on decorrelated inputs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from lax_learning._precision import raised
from lax_learning._sites._batch import as_batch
from lax_learning._sites._coupling import made_up
from lax_learning._sites._plan import Site
from lax_learning._sites._program import Program
from lax_learning._sites._run import Hooks
from lax_learning.decorrelation._models import Layers, checked_places
from lax_learning.models import Model, check_model
from lax_learning.types import Params, Where


def fold(model: Model, params: Params, layers: Layers, x: Any, *, where: Where = None) -> Params:
    """Returns plain weights: with them the model itself gives the output it gave on decorrelated inputs.

    `w <- R^T w`, for the matrix w of every product and convolution that reads decorrelated inputs.

    Args:
      model, params: the model, not wrapped, and parameters that were learned on decorrelated inputs.
      layers: of a `RuleState`.
      x: a batch; only its shapes and types are used.
      where: as of `rule`.

    Raises:
      ValueError: for a parameter that several operations read, or that is normalised or scaled before its
        product, or a mean that is removed (`bias=True`).
    """
    check_model(model)
    program = Program(model, params, as_batch(x, only_shapes=True)[0])
    places = checked_places(program, where, layers)
    leaves = list(program.split.leaves)
    for name, layer in layers.items():
        if getattr(layer, "b", None) is not None:
            expected = "no mean to remove, which weights cannot do"
            raise ValueError(f"layers[{name!r}]: expected {expected}, got a bias b")
    for site, name in ((site, name) for name, place in places.items() for site in place.sites):
        names = ", ".join(repr(program.split.paths[i]) for i in sorted(site.leaves))
        readers = [other for other in program.plan.all_sites if other.leaves & site.leaves]
        leaf = min(site.leaves)
        alone = len(site.leaves) == len(readers) == 1
        operand, restore = _operand(program, leaves, leaf, site) if alone else (leaves[leaf], None)
        if restore is None:
            raise ValueError(
                f"params: expected parameters that one product reads as they are, got {names}, which are "
                "read several times, normalised or scaled: they have no plain weights"
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
    """Returns a parameter as its product reads it, `[*lead, ...]`, and the way back if there is one."""
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
    with jax.ensure_compile_time_eval():  # on made-up numbers: the weights may be traced
        probes = [made_up(rng, like) for like in leaves]
        moved, pull = jax.vjp(at(probes), probes[leaf])
        same = jnp.array_equal(pull(moved)[0], probes[leaf])
        # A change of shape is an odd function; `abs` is not.
        same &= jnp.array_equal(at(probes)(-probes[leaf]), -moved)
    if isinstance(same, Tracer):
        raise ValueError("params: expected weights with values, got traced ones; fold outside of jit")
    return found, (lambda w: back(w)[0]) if same else None
