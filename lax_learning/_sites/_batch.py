"""Batches: any pytree of arrays with a leading axis of examples."""

from typing import Any

import jax
import jax.numpy as jnp

from lax_learning._arrays import as_arrays, check_values, is_numbers
from lax_learning._checks import describe


def as_batch(x: Any, *, only_shapes: bool = False) -> tuple[Any, int]:
    """Returns x with arrays (or ShapeDtypeStructs, if `only_shapes`) as leaves, and the batch size."""
    x = as_arrays("x", x, is_numbers)
    if not only_shapes:
        check_values("x", x)
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(x)}
    if len(sizes) != 1 or sizes == {()}:
        got = ", ".join(describe(leaf) for leaf in jax.tree.leaves(x)) or "none"
        raise ValueError(f"x: expected arrays with one leading axis of examples, got {got}")
    ((size,),) = sizes
    if size == 0:
        raise ValueError("x: expected at least one example, got 0")
    return x, size


def one_example(x: Any) -> Any:
    """Returns the shapes and dtypes of a batch of one example."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), x)
