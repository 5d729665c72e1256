"""A population of neurons in a pytree of parameters: which axis counts them, and what replaces them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from lax_learning._arrays import check_same_structure
from lax_learning._checks import as_floating, check_count, check_floating, describe
from lax_learning._precision import raised

PICKS = "a function that picks leaves of params with a neuron axis, such as lambda params: params['out']['w']"


class Population:
    """Parameters leaf by leaf, without those that are None.

    Attributes:
      names, leaves, axes: path, array, and the axis that counts the neurons or None, of every leaf.
      size: number of neurons.
    """

    def __init__(self, params: PyTree, axes: PyTree) -> None:
        found, wanted = (jax.tree.structure(tree, is_leaf=_is_none) for tree in (axes, params))
        if found != wanted:
            raise ValueError(f"axes: expected the structure of params, {wanted}, got {found}")
        self.structure = jax.tree.structure(params)
        self.names: list[str] = []
        self.leaves: list[Any] = []
        self.axes: list[int | None] = []
        sizes: dict[str, int] = {}
        leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_none)
        for (path, leaf), axis in zip(leaves, jax.tree.leaves(axes, is_leaf=_is_none), strict=True):
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
            raise ValueError(f"params: expected neuron axes of one size, got {sizes}")
        self.size = next(iter(sizes.values()))
        check_count("number of neurons", self.size)

    def flat(self, name: str, tree: PyTree) -> list[Any]:
        """Returns the leaves of a pytree; raises unless it has the structure and shapes of params."""
        check_same_structure((name, "params"), (tree, self.merged(self.leaves)))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            check_floating(f"{name}{jax.tree_util.keystr(path)}", leaf)
        return jax.tree.leaves(tree)

    def merged(self, leaves: list[Any]) -> PyTree:
        """Returns params with other leaves."""
        return jax.tree.unflatten(self.structure, leaves)

    def charges(self, pick: Callable[[PyTree], PyTree]) -> list[bool]:
        """Returns which leaves are charges; raises unless they have a neuron axis."""
        leaves = [_Leaf(name) for name in self.names]
        try:
            picked = jax.tree.leaves(pick(self.merged(leaves)))
        except (TypeError, LookupError, AttributeError) as error:
            computes = _Leaf.__name__ in str(error)
            got = "one that computes with them" if computes else f"one that raises {error!r}"
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
        """Returns params with every neuron as the one at its origin, its charges divided by its share.

        Where the origin is -1 neurons are those of `fresh`, with charges 0.
        """
        after = []
        leaves = zip(self.leaves, self.axes, is_charge, self.flat("prior", fresh), strict=True)
        for leaf, axis, counts, new in leaves:
            if axis is not None:
                new = jnp.zeros_like(leaf) if counts else jnp.asarray(new, leaf.dtype)
                leaf = jnp.take(leaf, jnp.maximum(origin, 0), axis=axis)
                if counts:
                    wide = raised(leaf)
                    parts = along(share.astype(wide), leaf.ndim, axis)
                    leaf = (leaf.astype(wide) / parts).astype(leaf.dtype)
                leaf = jnp.where(along(origin, leaf.ndim, axis) < 0, new, leaf)
            after.append(leaf)
        return self.merged(after)


def _is_none(leaf: Any) -> bool:
    return leaf is None


class _Leaf:
    """Stands for a leaf: it can be picked, but not be computed with."""

    def __init__(self, name: str):
        self.name = name

    def __repr__(self) -> str:
        return self.name


def along(values: Array, ndim: int, axis: int) -> Array:
    """Returns a vector laid along one axis of `ndim`."""
    return jnp.expand_dims(values, [i for i in range(ndim) if i != axis % ndim])
