"""A population of neurons in a pytree of parameters: which axis counts them, and what replaces them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from lax_learning._checks import check_count, check_floating
from lax_learning._precision import raised


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _check_structure(name: str, tree: PyTree, like: PyTree, is_leaf: Callable[[Any], bool]) -> None:
    found, wanted = jax.tree.structure(tree, is_leaf=is_leaf), jax.tree.structure(like)
    if found != wanted:
        raise ValueError(f"{name}: expected the structure of params, {wanted}, got {found}")


def check_like_params(name: str, tree: PyTree, params: PyTree) -> None:
    """Raises unless `tree` has the structure and shapes of `params` and is floating."""
    _check_structure(name, tree, params, lambda _: False)
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
    """How many neurons the leaves of `params` hold along `axes`; raises unless all hold as many."""
    _check_structure("axes", axes, params, _is_none)
    sizes: dict[str, int] = {}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, leaf), axis in zip(leaves, jax.tree.leaves(axes, is_leaf=_is_none), strict=True):
        at = f"params{jax.tree_util.keystr(path)}"
        check_floating(at, leaf)
        if axis is None:
            continue
        if isinstance(axis, bool) or not isinstance(axis, int):
            raise TypeError(f"axes: expected an int or None for {at}, got {axis!r}")
        shape = jnp.shape(leaf)
        if not -len(shape) <= axis < len(shape):
            raise ValueError(f"{at}: expected a neuron axis {axis}, got shape {list(shape)}")
        sizes[at] = shape[axis]
    if not sizes:
        raise ValueError("axes: expected a neuron axis for one leaf at least, got None for all")
    if len(set(sizes.values())) > 1:
        raise ValueError(f"params: expected neuron axes of one size, got {sizes}")
    size = next(iter(sizes.values()))
    check_count("number of neurons", size)
    return size


def charge_leaves(charges: Callable[[PyTree], PyTree], params: PyTree, axes: PyTree) -> tuple[bool, ...]:
    """Which leaves of `params` the function `charges` picks; raises unless they have a neuron axis."""
    leaves, structure = jax.tree.flatten(params)
    picked = jax.tree.leaves(charges(jax.tree.unflatten(structure, range(len(leaves)))))
    with_axis = [i for i, axis in enumerate(jax.tree.leaves(axes, is_leaf=_is_none)) if axis is not None]
    if not picked or not set(picked) <= set(with_axis):
        raise ValueError(f"charges: expected leaves of params with a neuron axis, got {picked or 'none'}")
    return tuple(i in picked for i in range(len(leaves)))


def birth_death_rates(
    params: PyTree, gradients: PyTree, axes: PyTree, is_charge: tuple[bool, ...]
) -> Float[Array, " neurons"]:
    """`V_i = c_i . dL/dc_i`, summed over all charges of a neuron."""
    total: Any = 0
    leaves = (jax.tree.leaves(tree) for tree in (params, gradients))
    for c, g, axis, counts in zip(*leaves, jax.tree.leaves(axes, is_leaf=_is_none), is_charge, strict=True):
        if counts:
            product = jnp.moveaxis(c * g, axis, 0)
            product = product.reshape(product.shape[0], -1)
            total = total + jnp.sum(product, axis=-1, dtype=raised(product))
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
    every_axis = jax.tree.leaves(axes, is_leaf=_is_none)
    after = []
    for leaf, axis, counts, new in zip(leaves, every_axis, is_charge, jax.tree.leaves(fresh), strict=True):
        if axis is not None:
            new = jnp.zeros_like(leaf) if counts else new.astype(leaf.dtype)
            leaf = jnp.take(leaf, jnp.maximum(origin, 0), axis=axis)
            leaf = leaf / along(share.astype(leaf.dtype), leaf.ndim, axis) if counts else leaf
            leaf = jnp.where(along(origin, leaf.ndim, axis) < 0, new, leaf)
        after.append(leaf)
    return jax.tree.unflatten(structure, after)


def along(values: Array, ndim: int, axis: int) -> Array:
    """A vector laid along one axis of `ndim`."""
    shape = [1] * ndim
    shape[axis] = values.shape[0]
    return values.reshape(shape)
