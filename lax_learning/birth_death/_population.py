"""Populations of neurons in pytrees: neuron axes, and the replacement of neurons by others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree

from lax_learning import _checks as checks
from lax_learning._arrays import by_path, check_same_structure
from lax_learning._precision import raised
from lax_learning.types import Params

PICKS = "a function that picks leaves of params with a neuron axis, such as lambda params: params['out']['w']"


@dataclass(eq=False)
class Leaf:
    """A leaf of params, and its axis of neurons or None."""

    name: str
    value: Any
    axis: int | None


class Population:
    """Params with an axis of neurons in some leaves: `tree` of `Leaf`s, `params` of arrays, and `size`."""

    def __init__(self, params: PyTree, axes: PyTree) -> None:
        wanted, found = (jax.tree.structure(tree, is_leaf=_is_none) for tree in (params, axes))
        if found != wanted:
            raise ValueError(f"axes: expected the structure of params, {wanted}, got {found}")
        self.tree = by_path("params", _as_leaf, params, axes, is_leaf=_is_none)
        self.params = jax.tree.map(lambda leaf: leaf.value, self.tree)
        leaves = [leaf for leaf in jax.tree.leaves(self.tree) if leaf.axis is not None]
        sizes = {leaf.name: leaf.value.shape[leaf.axis] for leaf in leaves}
        if not sizes:
            raise ValueError("axes: expected a neuron axis for at least one leaf, got None for all")
        if len(set(sizes.values())) > 1:
            raise ValueError(f"params: expected neuron axes of the same size, got {sizes}")
        self.size = next(iter(sizes.values()))
        checks.check_count("number of neurons", self.size)

    def like(self, name: str, tree: PyTree) -> PyTree:
        """Returns a pytree of arrays; raises unless it has the structure and shapes of params."""
        check_same_structure((name, "params"), (tree, self.params))
        return by_path(name, checks.as_floating, tree)

    def charges(self, pick: Callable[[PyTree], PyTree]) -> list[Leaf]:
        """Returns the leaves that are charges; raises if one has no neuron axis."""
        try:
            picked = jax.tree.leaves(pick(self.tree))  # no operation is defined for a `Leaf`
        except (TypeError, LookupError, AttributeError) as error:
            got = "one that computes with leaves" if "Leaf" in str(error) else f"one that raises {error!r}"
            raise ValueError(f"charges: expected {PICKS}, got {got}") from error
        others = [leaf for leaf in picked if getattr(leaf, "axis", None) is None]
        if others or not picked:
            got = ", ".join(getattr(leaf, "name", checks.describe(leaf)) for leaf in others) or "none"
            raise ValueError(f"charges: expected {PICKS}, got one that returns {got}")
        return picked

    def rates(self, gradients: PyTree, charges: list[Leaf]) -> Float[Array, " neurons"]:
        """Returns `V_i = c_i . dL/dc_i`, summed over all charges of a neuron."""
        slopes = jax.tree.leaves(self.like("gradients", gradients))
        pairs = zip(jax.tree.leaves(self.tree), slopes, strict=True)
        of_charges = [(leaf, slope) for leaf, slope in pairs if leaf in charges]
        dtype = raised(*(array for leaf, slope in of_charges for array in (leaf.value, slope)))
        rates = jnp.zeros((), dtype)
        for leaf, slope in of_charges:
            products = jnp.moveaxis(leaf.value.astype(dtype) * slope.astype(dtype), leaf.axis, 0)
            rates += jnp.sum(products.reshape(self.size, -1), axis=-1)
        return rates

    def replaced(
        self, charges: list[Leaf], origin: Int[Array, " neurons"], share: Array | None, fresh: PyTree
    ) -> PyTree:
        """Returns params with every neuron replaced by its origin, and charges divided by `share`, if given.

        Neurons with origin -1 are taken from `fresh`, with charges 0.
        """

        def of_leaf(leaf: Leaf, new: Array) -> Array:
            old = leaf.value
            if leaf.axis is None:
                return old
            new = jnp.zeros_like(old) if leaf in charges else new.astype(old.dtype)
            copied = jnp.take(old, jnp.maximum(origin, 0), axis=leaf.axis)
            if leaf in charges and share is not None:
                wide = raised(old)
                parts = _along(share.astype(wide), old.ndim, leaf.axis)
                copied = (copied.astype(wide) / parts).astype(old.dtype)
            return jnp.where(_along(origin, old.ndim, leaf.axis) < 0, new, copied)

        return jax.tree.map(of_leaf, self.tree, self.like("prior", fresh))


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _as_leaf(name: str, value: Any, axis: Any) -> Leaf | None:
    if value is None and axis is None:
        return None
    checks.check_floating(name, value)
    value = value if isinstance(value, jax.ShapeDtypeStruct) else checks.as_floating(name, value)
    if axis is not None:
        checks.check_count(f"axes: {name}", axis, -value.ndim, value.ndim - 1)
    return Leaf(name, value, axis)


def _along(values: Array, ndim: int, axis: int) -> Array:
    """Returns a vector along one of `ndim` axes; all others have size 1."""
    return jnp.expand_dims(values, [i for i in range(ndim) if i != axis % ndim])


def choose(u: Float[Array, " choices"], mask: Bool[Array, " neurons"]) -> Int[Array, " choices"]:
    """Maps each u in 0..1 to a neuron of the mask; uniform u give uniform choices."""
    place = jnp.cumsum(mask, dtype=jnp.int32)
    rank = jnp.minimum((u * place[-1].astype(u.dtype)).astype(jnp.int32), place[-1] - 1)
    return jnp.searchsorted(place, rank + 1, method="scan_unrolled").astype(jnp.int32)


def distinct_slots(u: Array, mask: Bool[Array, " neurons"]) -> Int[Array, " neurons"]:
    """Returns the source of every neuron: itself, or a neuron of the mask, each in its own slot."""
    size, inside = u.shape[0], jnp.sum(mask, dtype=jnp.int32)
    order = jnp.argsort(jnp.where(mask, 1 + u, u))  # those outside first; both in random order
    turn = jnp.arange(size, dtype=jnp.int32)
    to = jnp.where(turn < jnp.minimum(inside, size - inside), order, size)
    return turn.at[to].set(order[(turn + size - inside) % size].astype(jnp.int32), mode="drop")


def independent_slots(u: Array, mask: Bool[Array, " neurons"]) -> Int[Array, " neurons"]:
    """As `distinct_slots`, but drawn with replacement: of several copies on one neuron, the last stays."""
    neurons = jnp.arange(u.shape[0], dtype=jnp.int32)
    to = jnp.where(mask & ~jnp.all(mask), choose(u, ~mask), u.shape[0])
    source = jnp.full_like(neurons, -1).at[to].max(neurons, mode="drop")
    return jnp.where(source < 0, neurons, source)


def follow(
    optimizer_state: PyTree,
    origin: Int[Array, " neurons"],
    params: Params,
    axes: PyTree,
    *,
    copies: Literal["carry", "clear"] = "carry",
) -> PyTree:
    """Copies or clears the moments of replaced neurons in the state of any optax optimiser.

    `m_i <- m_origin(i)`, or 0; always 0 for new neurons

    A leaf of the state belongs to a leaf of params if its path ends with that leaf's path and the shapes are
    equal, for example `mu` and `nu` of Adam, also inside chains, masks and schedules. Everything else, such
    as counts and factored moments, is left unchanged.

    Args:
      optimizer_state: from `optimizer.init(params)` or an update.
      origin: from `Events`: the neuron of which each is a copy, -1 for new neurons.
      params: the parameters that the optimiser updates.
      axes: as for `dynamics`.
      copies: "carry": a copy gets the moments of its origin; "clear": its moments start at 0.

    Example:
      >>> import optax
      >>> params, axes = {"w": jnp.ones((2, 3)), "c": jnp.ones(3)}, {"w": 1, "c": 0}
      >>> state = optax.sgd(0.1, momentum=0.9).init(params)
      >>> state[0].trace["c"].shape, follow(state, jnp.array([0, 0, -1]), params, axes)[0].trace["w"].shape
      ((3,), (2, 3))
    """
    checks.check_choice("copies", copies, ("carry", "clear"))
    population = Population(params, axes)
    size = population.size
    origin = checks.as_array("origin", origin)
    if not jnp.issubdtype(origin.dtype, jnp.integer):
        raise TypeError(f"origin: expected integers, got {checks.describe(origin)}")
    checks.check_shapes(["origin"], [origin], [(size,)])
    if not isinstance(origin, Tracer):
        outside = [i for i in origin.tolist() if not -1 <= i < size]
        if outside:
            raise ValueError(f"origin: expected neurons in 0 .. {size - 1} or -1, got {outside[0]}")
    leaves = dict(jax.tree_util.tree_leaves_with_path(population.tree))

    def moved(path: tuple[Any, ...], leaf: Any) -> Any:
        if not (hasattr(leaf, "dtype") or isinstance(leaf, int | float)):
            at = f"optimizer_state{jax.tree_util.keystr(path)}"
            raise TypeError(f"{at}: expected an array, got {checks.describe(leaf)}")
        suffixes = (path[start:] for start in range(len(path) + 1))  # the longest first
        like = next((leaves[suffix] for suffix in suffixes if suffix in leaves), None)
        if like is None or like.axis is None or like.value.shape != jnp.shape(leaf):
            return leaf
        carried = jnp.take(leaf, jnp.maximum(origin, 0), axis=like.axis)
        if copies == "clear":
            carried = jnp.where(_along(origin == jnp.arange(size), carried.ndim, like.axis), carried, 0)
        return jnp.where(_along(origin, carried.ndim, like.axis) < 0, 0, carried)

    return jax.tree_util.tree_map_with_path(moved, optimizer_state)
