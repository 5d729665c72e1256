"""What an optimiser remembers of neurons follows them when a population resamples itself."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from lax_learning._checks import check_choice, check_shapes
from lax_learning._population import along, population_size
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
      axes: the structure of params; for every leaf the axis that counts the neurons, or None.
      copies: "carry": a copy has the moments of its origin; "clear": it starts with none.

    Returns:
      The state with the moments in their new places.

    Raises:
      TypeError, ValueError: for an unknown variant, axes that do not fit params, or an origin of another
        length.

    Example:
      >>> import optax
      >>> params, axes = {"w": jnp.ones((2, 3)), "c": jnp.ones(3)}, {"w": 1, "c": 0}
      >>> state = optax.sgd(0.1, momentum=0.9).init(params)
      >>> state[0].trace["c"].shape, follow(state, jnp.array([0, 0, -1]), params, axes)[0].trace["w"].shape
      ((3,), (2, 3))

    References:
      Rotskoff, Jelassi, Bruna, Vanden-Eijnden, Global convergence of neuron birth-death dynamics,
      https://arxiv.org/abs/1902.01843, 2019.
    """
    check_choice("copies", copies, _COPIES)
    size = population_size(params, axes)
    check_shapes(["origin"], [origin], [(size,)])
    every_axis = jax.tree.leaves(axes, is_leaf=lambda leaf: leaf is None)
    leaves = zip(jax.tree_util.tree_leaves_with_path(params), every_axis, strict=True)
    known = [(path, jnp.shape(leaf), axis) for (path, leaf), axis in leaves]
    longest_first = sorted(known, key=lambda entry: -len(entry[0]))

    def moved(path: tuple[Any, ...], leaf: Any) -> Any:
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
