"""Configurations by the programs that can hold them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Group(NamedTuple):
    """Configurations that one program can hold.

    Fields:
      static: what they have in common and a program is made for: sizes, numbers of steps.
      traced: what differs, each value `[members]`.
      members: their places among all configurations.
    """

    static: dict[str, Any]
    traced: dict[str, np.ndarray]
    members: tuple[int, ...]


def group_by_shape(configurations: Sequence[Mapping[str, Any]], static: Sequence[str]) -> list[Group]:
    """Groups configurations of the same fields by the static ones, in the order of their first members."""
    places: dict[tuple[Any, ...], list[int]] = {}
    for i, one in enumerate(configurations):
        # 1, 1.0 and True are equal, and make different programs.
        places.setdefault(tuple((type(one[name]), one[name]) for name in static), []).append(i)
    traced = [name for name in configurations[0] if name not in static]
    return [
        Group(
            {name: configurations[members[0]][name] for name in static},
            {name: np.array([configurations[i][name] for i in members]) for name in traced},
            tuple(members),
        )
        for members in places.values()
    ]
