"""Members of an ensemble on one device, batch by batch."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax

from lax_learning._checks import check_count
from lax_learning.placement import repeating_the_last

Axes: TypeAlias = tuple[int | None, ...]


def count_members(axes: Axes, args: tuple[Any, ...]) -> int:
    """The size of all leading axes of members."""
    counts = set()
    for i, (axis, arg) in enumerate(zip(axes, args, strict=True)):
        if axis == 0:
            for leaf in jax.tree.leaves(arg):
                if leaf.ndim == 0:
                    raise ValueError(f"argument {i}: expected a leading axis of members, got a scalar")
                counts.add(leaf.shape[0])
    if len(counts) != 1:
        raise ValueError(f"arguments: expected leading axes of one size, got {sorted(counts)}")
    (count,) = counts
    check_count("number of members", count)
    return count


def in_batches(together: Callable[..., Any], axes: Axes, batch_size: int, one: Any, *args: Any) -> Any:
    """Batches one after another; the last member is repeated where they do not fill them.

    XLA makes another program of a loop that it knows to run once, and of arrays with a single row: it is
    not told that `one` is 1, and there are at least two rows.
    """
    count = count_members(axes, args)
    num_batches = -(-count // batch_size)
    num_rows = max(num_batches, 2)
    chosen = repeating_the_last(count, num_rows * batch_size)
    rows = [
        arg
        if axis is None
        else jax.tree.map(lambda leaf: leaf[chosen].reshape(num_rows, batch_size, *leaf.shape[1:]), arg)
        for axis, arg in zip(axes, args, strict=True)
    ]

    def batch(i: Any) -> Any:
        return together(
            *(
                arg if axis is None else jax.tree.map(lambda leaf: leaf[i], arg)
                for axis, arg in zip(axes, rows, strict=True)
            )
        )

    def put(i: Any, found: Any) -> Any:
        return jax.tree.map(lambda of_all, of_batch: of_all.at[i].set(of_batch), found, batch(i))

    found = jax.tree.map(
        lambda leaf: jax.lax.full((num_rows, *leaf.shape), 0, leaf.dtype), jax.eval_shape(batch, 0)
    )
    found = jax.lax.fori_loop(0, one * num_batches, put, found)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], found)
