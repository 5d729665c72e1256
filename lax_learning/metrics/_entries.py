"""Pytrees taken apart by layer, their entries at the top."""

from collections.abc import Mapping, Sequence
from typing import Any

from lax_learning._checks import describe


def entries_of(name: str, tree: Any) -> dict[Any, Any]:
    """The entries of a sequence or a mapping by index or key; raises ValueError for anything else."""
    if isinstance(tree, Mapping):
        entries = dict(tree)
    elif isinstance(tree, Sequence) and not isinstance(tree, str | bytes):
        entries = dict(enumerate(tree))
    else:
        raise ValueError(
            f"{name}: expected a sequence or a mapping with one entry a layer, got {describe(tree)}"
        )
    if not entries:
        raise ValueError(f"{name}: expected at least one layer, got {tree!r}")
    return entries


def like_entries(tree: Any, results: dict[Any, Any]) -> Any:
    """Results by entry as the tree has them: a dict for a mapping, a tuple for a sequence."""
    return results if isinstance(tree, Mapping) else tuple(results.values())
