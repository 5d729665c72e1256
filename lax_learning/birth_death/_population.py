"""A population of neurons in a pytree of parameters: which axis counts them, and what replaces them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from lax_learning._checks import (
    as_array,
    check_count,
    check_floating,
    describe,
)
from lax_learning._precision import raised

PICKS = "a function that picks leaves of params with a neuron axis, such as lambda params: params['out']['w']"


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _check_structure(
    name: str, tree: PyTree, like: PyTree, is_leaf: Callable[[Any], bool] | None = None
) -> None:
    found, wanted = (jax.tree.structure(t, is_leaf=is_leaf) for t in (tree, like))
    if found != wanted:
        raise ValueError(f"{name}: expected the structure of params, {wanted}, got {found}")


def as_params(params: PyTree) -> PyTree:
    """The params with leaves that are floating arrays: numbers are converted; None stays, for no array."""

    def converted(path: tuple[Any, ...], leaf: Any) -> Array:
        name = f"params{jax.tree_util.keystr(path)}"
        check_floating(name, leaf)
        return as_array(name, leaf)

    return jax.tree_util.tree_map_with_path(converted, params)


def leaf_axes(params: PyTree, axes: PyTree) -> tuple[int | None, ...]:
    """The neuron axis of every leaf of `params`, or None; raises unless `axes` has the structure of `params`.

    Where params have None in place of an array, so do axes.
    """
    _check_structure("axes", axes, params, _is_none)
    every_axis = jax.tree.leaves(axes, is_leaf=_is_none)
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_none)
    for (path, leaf), axis in zip(leaves, every_axis, strict=True):
        at = jax.tree_util.keystr(path)
        if leaf is None and axis is not None:
            raise ValueError(f"axes{at}: expected None, as params have no array there, got {axis!r}")
        if axis is not None and (isinstance(axis, bool) or not isinstance(axis, int)):
            raise TypeError(f"axes: expected an int or None for params{at}, got {axis!r}")
    return tuple(axis for (_, leaf), axis in zip(leaves, every_axis, strict=True) if leaf is not None)


def check_like_params(name: str, tree: PyTree, params: PyTree) -> None:
    """Raises unless `tree` has the structure and shapes of `params` and is floating."""
    _check_structure(name, tree, params)
    for (path, leaf), other in zip(
        jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(params), strict=True
    ):
        at = jax.tree_util.keystr(path)
        check_floating(f"{name}{at}", leaf)
        if jnp.shape(leaf) != jnp.shape(other):
            raise ValueError(
                f"{name}{at}: expected shape {list(jnp.shape(other))}, got {list(jnp.shape(leaf))}"
            )


def population_size(params: PyTree, axes: PyTree) -> int:
    """Returns the number of neurons of `params` along `axes`; raises unless all leaves hold as many."""
    every_axis = leaf_axes(params, axes)
    sizes: dict[str, int] = {}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, leaf), axis in zip(leaves, every_axis, strict=True):
        at = f"params{jax.tree_util.keystr(path)}"
        check_floating(at, leaf)
        if axis is None:
            continue
        shape = jnp.shape(leaf)
        if not -len(shape) <= axis < len(shape):
            raise ValueError(f"{at}: expected a neuron axis {axis}, got shape {list(shape)}")
        sizes[at] = shape[axis]
    if not sizes:
        raise ValueError("axes: expected a neuron axis for at least one leaf, got None for all")
    if len(set(sizes.values())) > 1:
        raise ValueError(f"params: expected neuron axes of one size, got {sizes}")
    size = next(iter(sizes.values()))
    check_count("number of neurons", size)
    return size


def charge_leaves(charges: Callable[[PyTree], PyTree], params: PyTree, axes: PyTree) -> tuple[bool, ...]:
    """Returns which leaves of `params` are charges; raises unless they have a neuron axis."""
    named, structure = jax.tree_util.tree_flatten_with_path(params)
    leaves = [_Leaf(f"params{jax.tree_util.keystr(path)}") for path, _ in named]
    try:
        picked = jax.tree.leaves(charges(jax.tree.unflatten(structure, leaves)))
    except (TypeError, LookupError, AttributeError) as error:
        computes = _Leaf.__name__ in str(error)
        got = "one that computes with them" if computes else f"one that raises {error!r}"
        raise ValueError(f"charges: expected {PICKS}, got {got}") from error
    with_axis = [leaf for leaf, axis in zip(leaves, leaf_axes(params, axes), strict=True) if axis is not None]
    if not picked or not all(isinstance(leaf, _Leaf) and leaf in with_axis for leaf in picked):
        others = [leaf for leaf in picked if leaf not in with_axis]
        got = ", ".join(str(leaf) if isinstance(leaf, _Leaf) else describe(leaf) for leaf in others) or "none"
        raise ValueError(f"charges: expected {PICKS}, got one that returns {got}")
    return tuple(leaf in picked for leaf in leaves)


class _Leaf:
    """Stands for a leaf: it can be picked, but not be computed with."""

    def __init__(self, name: str):
        self.name = name

    def __repr__(self) -> str:
        return self.name


def birth_death_rates(
    params: PyTree, gradients: PyTree, axes: PyTree, is_charge: tuple[bool, ...]
) -> Float[Array, " neurons"]:
    """`V_i = c_i . dL/dc_i`, summed over all charges of a neuron."""
    total: Any = 0
    leaves = (jax.tree.leaves(tree) for tree in (params, gradients))
    picked = [x for x in zip(*leaves, leaf_axes(params, axes), is_charge, strict=True) if x[-1]]
    dtype = raised(*(array for c, g, *_ in picked for array in (c, g)))
    for c, g, axis, _ in picked:
        product = jnp.moveaxis(jnp.asarray(c, dtype) * jnp.asarray(g, dtype), axis, 0)
        total = total + jnp.sum(product.reshape(product.shape[0], -1), axis=-1)
    return total


def replace_neurons(
    params: PyTree,
    axes: PyTree,
    is_charge: tuple[bool, ...],
    origin: Int[Array, " neurons"],
    share: Float[Array, " neurons"],
    fresh: PyTree,
) -> PyTree:
    """Every neuron as the one at its origin, its charges divided by its share; where the origin is -1 as in
    `fresh`, with charges 0.
    """
    leaves, structure = jax.tree.flatten(params)
    every_axis = leaf_axes(params, axes)
    after = []
    for leaf, axis, counts, new in zip(leaves, every_axis, is_charge, jax.tree.leaves(fresh), strict=True):
        if axis is not None:
            new = jnp.zeros_like(leaf) if counts else jnp.asarray(new, leaf.dtype)
            leaf = jnp.take(leaf, jnp.maximum(origin, 0), axis=axis)
            if counts:
                wide = raised(leaf)
                leaf = (leaf.astype(wide) / along(share.astype(wide), leaf.ndim, axis)).astype(leaf.dtype)
            leaf = jnp.where(along(origin, leaf.ndim, axis) < 0, new, leaf)
        after.append(leaf)
    return jax.tree.unflatten(structure, after)


def along(values: Array, ndim: int, axis: int) -> Array:
    """A vector laid along one axis of `ndim`."""
    shape = [1] * ndim
    shape[axis] = values.shape[0]
    return values.reshape(shape)
