"""Conversion and checks of pytrees of arrays that users pass in, leaf by leaf."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from lax_learning._checks import as_array, as_floating, check_count, check_floating, describe, short


def by_path(
    name: str, function: Callable[..., Any], *trees: Any, is_leaf: Callable[[Any], bool] | None = None
) -> Any:
    """Maps `function(name + path, *leaves)` over the leaves of pytrees with the same structure."""

    def of_leaf(path: Any, *leaves: Any) -> Any:
        return function(f"{name}{jax.tree_util.keystr(path)}", *leaves)

    return jax.tree.map_with_path(of_leaf, *trees, is_leaf=is_leaf)


def as_arrays(name: str, tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> Any:
    """Returns a pytree whose leaves are arrays: numbers and NumPy arrays of numbers are converted.

    JAX arrays, including PRNG keys, and `jax.ShapeDtypeStruct`s pass unchanged; other leaves raise TypeError.
    `is_leaf` marks further nodes as leaves, for example `is_numbers`.
    """

    def of_leaf(at: str, leaf: Any) -> Any:
        if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
            return leaf
        is_complex = isinstance(leaf, complex | np.ndarray | np.generic) and np.iscomplexobj(leaf)
        return jnp.asarray(leaf) if is_complex else as_array(at, leaf, "an array")

    return by_path(name, of_leaf, tree, is_leaf=is_leaf)


def is_numbers(node: Any) -> bool:
    """Returns whether a node of a pytree is a (nested) list of numbers, to be converted to an array."""
    leaves = jax.tree.leaves(node) if isinstance(node, list | tuple) else ()
    return bool(leaves) and all(isinstance(leaf, bool | int | float) for leaf in leaves)


def check_values(name: str, tree: Any) -> None:
    """Raises TypeError if a pytree of arrays contains a `jax.ShapeDtypeStruct` instead of an array."""

    def check(at: str, leaf: Any) -> None:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise TypeError(f"{at}: expected an array, got ShapeDtypeStruct {describe(leaf)}")

    by_path(name, check, tree)


def as_params(params: Any) -> Any:
    """Returns params with floating-point arrays as leaves; Python floats are converted.

    Raises:
      TypeError: for any other leaf, with its path.
      ValueError: for an NNX module that contains a variable twice, which would get two gradients.
    """
    places: dict[int, str] = {}

    def check(at: str, node: Any) -> None:
        if _is_variable(node) and places.setdefault(id(node), at) != at:
            raise ValueError(
                f"params: expected each variable once, got one at {places[id(node)]} and {at}; pass the "
                "state from nnx.split, which contains it once"
            )

    by_path("params", check, params, is_leaf=_is_variable)
    return by_path("params", as_floating, params)


def _is_variable(node: Any) -> bool:
    """Returns whether a node of a pytree is a Flax NNX variable, without importing Flax."""
    kinds = type(node).mro()
    return any(kind.__module__.startswith("flax.nnx") and kind.__name__ == "Variable" for kind in kinds)


def as_real(name: str, value: Any) -> Array:
    """Returns `value` as a float32 array, or unchanged if it is float64.

    Converts numbers, lists of numbers, booleans, half precision and integer arrays of up to 16 bits. Raises
    TypeError for arrays of wider integers, which float32 would round, and for anything else.
    """
    array = as_array(name, value)
    is_wide = jnp.issubdtype(array.dtype, jnp.integer) and array.dtype.itemsize > 2
    if is_wide and hasattr(value, "dtype"):
        check_floating(name, array)
    return array.astype(array.dtype if array.dtype == jnp.float64 else jnp.float32)


def as_real_leaves(name: str, tree: Any) -> Any:
    """Applies `as_real` to every leaf of a pytree; raises ValueError if there are no leaves."""
    if not jax.tree.leaves(tree):
        raise ValueError(f"{name}: expected at least one array, got {tree!r}")
    return by_path(name, as_real, tree)


def check_same_structure(names: tuple[str, str], trees: tuple[Any, Any]) -> None:
    """Raises ValueError unless both pytrees have the same structure and leaves of the same shapes."""
    (name, like), (tree, other) = names, trees
    structure, expected = jax.tree.structure(tree), jax.tree.structure(other)
    if structure != expected:
        raise ValueError(f"{name}: expected the structure of {like}, {expected}, got {structure}")

    def check(at: str, a: Any, b: Any) -> None:
        if jnp.shape(a) != jnp.shape(b):
            raise ValueError(
                f"{at}: expected shape {list(jnp.shape(b))} as in {like}, got {list(jnp.shape(a))}"
            )

    by_path(name, check, tree, other)


def check_members(named: dict[str, Any]) -> None:
    """Raises ValueError unless all leaves have a leading axis of the same size, at least 1."""
    for name, leaf in named.items():
        if leaf.ndim == 0:
            raise ValueError(f"{name}: expected a leading axis of members, got a scalar")
    counts = {name: len(leaf) for name, leaf in named.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"args: expected leading axes of one size, at least one, got {counts}")
    check_count("number of members", next(iter(counts.values())))


def check_counter(name: str, value: Any) -> None:
    """Raises TypeError unless a field of a state is a single integer."""
    if as_array(name, value).shape != () or not jnp.issubdtype(jnp.result_type(value), jnp.integer):
        raise TypeError(f"{name}: expected one integer, got {describe(value)}")


def check_one_hot(name: str, value: Any) -> None:
    """Raises ValueError unless every row contains a single 1 and is 0 elsewhere; traced values pass."""
    if isinstance(value, Tracer):
        return
    rows = np.asarray(as_array(name, value)).astype(float)
    wrong = np.flatnonzero(np.any((rows != 0) & (rows != 1), axis=-1) | (rows.sum(axis=-1) != 1))
    if wrong.size:
        row = rows.reshape(-1, rows.shape[-1])[wrong[0]]
        raise ValueError(f"{name}[{wrong[0]}]: expected a one-hot row, got {short(row.tolist())}")
