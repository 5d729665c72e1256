"""Sequences and pytrees with replaced entries, of the same type as before."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax


def sequence_like(like: Sequence[Any], items: Iterable[Any]) -> Any:
    """Returns the items in a list, tuple or named tuple of the type of `like`."""
    kind = type(like)
    return kind(*items) if hasattr(kind, "_fields") else kind(items)  # pyright: ignore[reportCallIssue]


def merged(tree: Any, new: Any) -> Any:
    """Returns a pytree with the leaves of `new` wherever these are not None."""

    def newer(new: Any, old: Any) -> Any:
        return old if new is None else new

    return jax.tree.map(newer, new, tree, is_leaf=lambda node: node is None)
