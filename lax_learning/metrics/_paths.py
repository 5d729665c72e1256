"""Pytrees taken apart by the paths of their leaves."""

from typing import Any

import jax

from lax_learning._checks import check_count


def by_prefix(tree: Any, depth: int | None) -> dict[str, dict[str, Any]]:
    """The leaves by the first `depth` parts of their path, each group a dict by the whole path.

    Without a depth every leaf is a group of its own.
    """
    if depth is not None:
        check_count("depth", depth)
    groups: dict[str, dict[str, Any]] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        prefix, whole = (jax.tree_util.keystr(p, simple=True, separator="/") for p in (path[:depth], path))
        groups.setdefault(prefix, {})[whole] = leaf
    return groups
