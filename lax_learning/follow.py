"""What an optimiser remembers of neurons follows them when a population resamples itself."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from lax_learning._checks import check_choice
from lax_learning._population import along

_COPIES = {"carry": lambda moments, kept: moments, "clear": lambda moments, kept: jnp.where(kept, moments, 0)}


def follow(
    optimizer_state: PyTree, origin: Int[Array, " neurons"], axes: PyTree, *, copies: str = "carry"
) -> PyTree:
    """Carries the moments of replaced neurons along, or clears them, in the state of any optax optimizer.

    `m_i <- m_origin(i)`, or 0; always 0 for fresh neurons

    A leaf of the state belongs to the leaf of params whose path ends its own, as for the `mu` and `nu` of
    Adam, and also below chains, masks and schedules. Everything else, counts for example, stays. So do
    factored moments that lack the neuron axis.

    Args:
      optimizer_state: from `optimizer.init(params)` or an update.
      origin: from the `Events` of birth-death: whom each neuron is a copy of, -1 for fresh ones.
      axes: the structure of params; for every leaf the axis that counts the neurons, or None.
      copies: "carry": a copy has the moments of its origin; "clear": it starts with none.

    Returns:
      The state with the moments in their new places.

    Raises:
      ValueError: for an unknown variant.

    Example:
      >>> import optax
      >>> params, axes = {"w": jnp.ones((2, 3)), "c": jnp.ones(3)}, {"w": 1, "c": 0}
      >>> state = optax.sgd(0.1, momentum=0.9).init(params)
      >>> state[0].trace["c"].shape, follow(state, jnp.array([0, 0, -1]), axes)[0].trace["w"].shape
      ((3,), (2, 3))

    References:
      Rotskoff, Jelassi, Bruna, Vanden-Eijnden, Global convergence of neuron birth-death dynamics,
      https://arxiv.org/abs/1902.01843, 2019.
    """
    check_choice("copies", copies, _COPIES)
    of_params = jax.tree_util.tree_leaves_with_path(axes, is_leaf=lambda leaf: leaf is None)
    longest_first = sorted(of_params, key=lambda entry: -len(entry[0]))
    size = origin.shape[0]

    def moved(path: tuple[Any, ...], leaf: Any) -> Any:
        axis = next((a for p, a in longest_first if path[len(path) - len(p) :] == p), None)
        shape = jnp.shape(leaf)
        if axis is None or not -len(shape) <= axis < len(shape) or shape[axis] != size:
            return leaf
        kept = along(origin == jnp.arange(size), len(shape), axis)
        carried = _COPIES[copies](jnp.take(leaf, jnp.maximum(origin, 0), axis=axis), kept)
        return jnp.where(along(origin, len(shape), axis) < 0, 0, carried)

    return jax.tree_util.tree_map_with_path(moved, optimizer_state)
