"""Populations of neurons in pytrees: neuron axes, and the replacement of neurons by others."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree

from lax_learning._arrays import check_same_structure
from lax_learning._checks import (
    as_array,
    as_floating,
    check_choice,
    check_count,
    check_floating,
    check_shapes,
    describe,
)
from lax_learning._precision import raised
from lax_learning.types import Params

PICKS = "a function that picks leaves of params with a neuron axis, such as lambda params: params['out']['w']"


class Population:
    """The leaves of params, except those that are None.

    Attributes:
      names, leaves, axes: of every leaf, the path, the array, and the neuron axis or None.
      size: number of neurons.
    """

    def __init__(self, params: PyTree, axes: PyTree) -> None:
        flat, wanted = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_none)
        axes, found = jax.tree.flatten(axes, is_leaf=_is_none)
        if found != wanted:
            raise ValueError(f"axes: expected the structure of params, {wanted}, got {found}")
        self.structure = jax.tree.structure(params)
        self.names: list[str] = []
        self.leaves: list[Any] = []
        self.axes: list[int | None] = []
        sizes: dict[str, int] = {}
        for (path, leaf), axis in zip(flat, axes, strict=True):
            at = jax.tree_util.keystr(path)
            if leaf is None:
                if axis is not None:
                    raise ValueError(f"axes{at}: expected None, as params have no array there, got {axis!r}")
                continue
            name = f"params{at}"
            if axis is not None and (isinstance(axis, bool) or not isinstance(axis, int)):
                raise TypeError(f"axes: expected an int or None for {name}, got {axis!r}")
            check_floating(name, leaf)
            leaf = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else as_floating(name, leaf)
            if axis is not None:
                if not -leaf.ndim <= axis < leaf.ndim:
                    raise ValueError(f"{name}: expected a neuron axis {axis}, got shape {list(leaf.shape)}")
                sizes[name] = leaf.shape[axis]
            self.names.append(name)
            self.leaves.append(leaf)
            self.axes.append(axis)
        if not sizes:
            raise ValueError("axes: expected a neuron axis for at least one leaf, got None for all")
        if len(set(sizes.values())) > 1:
            raise ValueError(f"params: expected neuron axes of the same size, got {sizes}")
        self.size = next(iter(sizes.values()))
        check_count("number of neurons", self.size)

    def flat(self, name: str, tree: PyTree) -> list[Any]:
        """Returns the leaves of a pytree; raises unless it has the structure and shapes of params."""
        check_same_structure((name, "params"), (tree, self.merged(self.leaves)))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            check_floating(f"{name}{jax.tree_util.keystr(path)}", leaf)
        return jax.tree.leaves(tree)

    def merged(self, leaves: list[Any]) -> PyTree:
        """Returns a pytree like params with the given leaves."""
        return jax.tree.unflatten(self.structure, leaves)

    def charges(self, pick: Callable[[PyTree], PyTree]) -> list[bool]:
        """Returns for every leaf whether it is a charge; raises if a charge has no neuron axis."""
        leaves = [_Leaf(name) for name in self.names]
        try:
            picked = jax.tree.leaves(pick(self.merged(leaves)))
        except (TypeError, LookupError, AttributeError) as error:
            computes = _Leaf.__name__ in str(error)
            got = "one that computes with leaves" if computes else f"one that raises {error!r}"
            raise ValueError(f"charges: expected {PICKS}, got {got}") from error
        with_axis = [leaf for leaf, axis in zip(leaves, self.axes, strict=True) if axis is not None]
        others = [leaf for leaf in picked if leaf not in with_axis]
        if others or not picked:
            got = ", ".join(str(leaf) if isinstance(leaf, _Leaf) else describe(leaf) for leaf in others)
            raise ValueError(f"charges: expected {PICKS}, got one that returns {got or 'none'}")
        return [leaf in picked for leaf in leaves]

    def rates(self, gradients: PyTree, is_charge: list[bool]) -> Float[Array, " neurons"]:
        """Returns `V_i = c_i . dL/dc_i`, summed over all charges of a neuron."""
        leaves = zip(self.leaves, self.flat("gradients", gradients), self.axes, is_charge, strict=True)
        picked = [(c, g, axis) for c, g, axis, counts in leaves if counts]
        dtype = raised(*(array for c, g, _ in picked for array in (c, g)))
        products = (
            jnp.moveaxis(jnp.asarray(c, dtype) * jnp.asarray(g, dtype), axis or 0, 0) for c, g, axis in picked
        )
        return sum((jnp.sum(p.reshape(self.size, -1), axis=-1) for p in products), jnp.zeros((), dtype))

    def replaced(
        self, is_charge: list[bool], origin: Int[Array, " neurons"], share: Array, fresh: PyTree
    ) -> PyTree:
        """Returns params with every neuron replaced by its origin, and charges divided by `share`.

        Neurons with origin -1 are taken from `fresh`, with charges 0.
        """
        after = []
        leaves = zip(self.leaves, self.axes, is_charge, self.flat("prior", fresh), strict=True)
        for leaf, axis, counts, new in leaves:
            if axis is not None:
                new = jnp.zeros_like(leaf) if counts else jnp.asarray(new, leaf.dtype)
                leaf = jnp.take(leaf, jnp.maximum(origin, 0), axis=axis)
                if counts:
                    wide = raised(leaf)
                    parts = _along(share.astype(wide), leaf.ndim, axis)
                    leaf = (leaf.astype(wide) / parts).astype(leaf.dtype)
                leaf = jnp.where(_along(origin, leaf.ndim, axis) < 0, new, leaf)
            after.append(leaf)
        return self.merged(after)


def _is_none(leaf: Any) -> bool:
    return leaf is None


class _Leaf:
    """Placeholder of a leaf, which can be picked but not used in computations."""

    def __init__(self, name: str):
        self.name = name

    def __repr__(self) -> str:
        return self.name


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
    check_choice("copies", copies, ("carry", "clear"))
    population = Population(params, axes)
    size = population.size
    origin = as_array("origin", origin)
    if not jnp.issubdtype(origin.dtype, jnp.integer):
        raise TypeError(f"origin: expected integers, got {describe(origin)}")
    check_shapes(["origin"], [origin], [(size,)])
    if not isinstance(origin, Tracer):
        outside = [i for i in origin.tolist() if not -1 <= i < size]
        if outside:
            raise ValueError(f"origin: expected neurons in 0 .. {size - 1} or -1, got {outside[0]}")
    paths = (path for path, _ in jax.tree_util.tree_leaves_with_path(params))
    known = zip(paths, (leaf.shape for leaf in population.leaves), population.axes, strict=True)
    longest_first = sorted(known, key=lambda entry: -len(entry[0]))

    def moved(path: tuple[Any, ...], leaf: Any) -> Any:
        if not (hasattr(leaf, "dtype") or isinstance(leaf, int | float)):
            at = f"optimizer_state{jax.tree_util.keystr(path)}"
            raise TypeError(f"{at}: expected an array, got {describe(leaf)}")
        matching = (k[1:] for k in longest_first if path[len(path) - len(k[0]) :] == k[0])
        shape, axis = next(matching, (None, None))
        if axis is None or shape != jnp.shape(leaf):
            return leaf
        carried = jnp.take(leaf, jnp.maximum(origin, 0), axis=axis)
        if copies == "clear":
            carried = jnp.where(_along(origin == jnp.arange(size), carried.ndim, axis), carried, 0)
        return jnp.where(_along(origin, carried.ndim, axis) < 0, 0, carried)

    return jax.tree_util.tree_map_with_path(moved, optimizer_state)
