"""Containers of the same kind as the input: lists stay lists, and frozen dicts frozen."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def sequence_like(like: Sequence[Any], items: Iterable[Any]) -> Any:
    """The items as a list, tuple or named tuple, as `like` is one."""
    kind = type(like)
    return kind(*items) if hasattr(kind, "_fields") else kind(items)  # pyright: ignore[reportCallIssue]


def mapping_like(like: Mapping[str, Any], **entries: Any) -> Any:
    """`like` with some entries replaced."""
    return type(like)({**like, **entries})  # pyright: ignore[reportCallIssue]
