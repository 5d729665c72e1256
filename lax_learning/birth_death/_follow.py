"""Moments of an optimiser that follow neurons when a population resamples itself."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Int, PyTree

from lax_learning._checks import as_array, check_choice, check_shapes, describe
from lax_learning.birth_death._population import Population, along
from lax_learning.types import Params

_COPIES = {"carry": lambda moments, kept: moments, "clear": lambda moments, kept: jnp.where(kept, moments, 0)}


def follow(
    optimizer_state: PyTree,
    origin: Int[Array, " neurons"],
    params: Params,
    axes: PyTree,
    *,
    copies: str = "carry",
) -> PyTree:
    """Carries the moments of replaced neurons along, or clears them, in the state of any optax optimizer.

    `m_i <- m_origin(i)`, or 0; always 0 for fresh neurons

    A leaf of the state belongs to the leaf of params whose path ends its own, if it has its shape: the `mu`
    and `nu` of Adam for example, also below chains, masks and schedules. Everything else stays: counts, and
    factored moments.

    Args:
      optimizer_state: from `optimizer.init(params)` or an update.
      origin: from the `Events` of birth-death: whom each neuron is a copy of, -1 for fresh ones.
      params: what the optimizer changes.
      axes: the structure of params; for every leaf the axis that counts the neurons, or None. Where params
        have None in place of an array, so do axes.
      copies: "carry": a copy has the moments of its origin; "clear": it starts with none.

    Returns:
      The state with the moments in their new places.

    Example:
      >>> import optax
      >>> params, axes = {"w": jnp.ones((2, 3)), "c": jnp.ones(3)}, {"w": 1, "c": 0}
      >>> state = optax.sgd(0.1, momentum=0.9).init(params)
      >>> state[0].trace["c"].shape, follow(state, jnp.array([0, 0, -1]), params, axes)[0].trace["w"].shape
      ((3,), (2, 3))
    """
    check_choice("copies", copies, _COPIES)
    population = Population(params, axes)
    size = population.size
    origin = as_array("origin", origin)
    if not jnp.issubdtype(origin.dtype, jnp.integer):
        raise TypeError(f"origin: expected integers, got {describe(origin)}")
    check_shapes(["origin"], [origin], [(size,)])
    if not isinstance(origin, Tracer):
        outside = [i for i in origin.tolist() if not -1 <= i < size]
        if outside:
            raise ValueError(f"origin: expected neurons of 0 .. {size - 1} or -1, got {outside[0]}")
    paths = (path for path, _ in jax.tree_util.tree_leaves_with_path(params))
    known = zip(paths, (leaf.shape for leaf in population.leaves), population.axes, strict=True)
    longest_first = sorted(known, key=lambda entry: -len(entry[0]))

    def moved(path: tuple[Any, ...], leaf: Any) -> Any:
        if not (hasattr(leaf, "dtype") or isinstance(leaf, int | float)):
            at = f"optimizer_state{jax.tree_util.keystr(path)}"
            raise TypeError(f"{at}: expected an array, got {describe(leaf)}")
        shape = jnp.shape(leaf)
        _, own, axis = next(
            (k for k in longest_first if path[len(path) - len(k[0]) :] == k[0]), (0, None, None)
        )
        if axis is None or own != shape:
            return leaf
        kept = along(origin == jnp.arange(size), len(shape), axis)
        carried = _COPIES[copies](jnp.take(leaf, jnp.maximum(origin, 0), axis=axis), kept)
        return jnp.where(along(origin, len(shape), axis) < 0, 0, carried)

    return jax.tree_util.tree_map_with_path(moved, optimizer_state)
