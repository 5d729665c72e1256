"""Pytrees taken apart by the paths of their leaves."""

from typing import Any

import jax

from lax_learning._checks import check_count


def by_prefix(tree: Any, depth: int | None) -> dict[str, dict[str, Any]]:
    """The leaves by the first `depth` parts of their path, each group a dict by the whole path.

    Without a depth every leaf is a group of its own.

    Raises:
      ValueError: for several leaves at one path, as of `{"a/b": x, "a": {"b": y}}`.
    """
    if depth is not None:
        check_count("depth", depth)
    groups: dict[str, dict[str, Any]] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        prefix, whole = (jax.tree_util.keystr(p, simple=True, separator="/") for p in (path[:depth], path))
        group = groups.setdefault(prefix, {})
        if whole in group:
            raise ValueError(f"trees: expected one leaf at each path, got several at {whole!r}")
        group[whole] = leaf
    return groups
