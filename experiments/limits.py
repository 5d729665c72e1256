"""Limits of the numbers on a command line, and checks of values against their annotations."""

import math
import types
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

import numpy as np

MOST = 2**31 - 1
"""Largest integer that is accepted: that of int32."""
SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Limits:
    """The values that a number may have.

    Attributes:
      least: smallest value.
      most: largest value; of integers at most that of int32.
      open_at: whether `least` and `most` are left out.
    """

    least: float = -math.inf
    most: float = math.inf
    open_at: tuple[bool, bool] = (False, False)

    def check(self, name: str, value: float) -> None:
        """Raises ValueError unless `value` lies within the limits and int32 or float32 hold it."""
        if isinstance(value, int):
            most = int(min(self.most, MOST))
            if value < self.least:
                raise ValueError(f"{name}: expected at least {self.least:g}, got {value}")
            if value > most:
                raise ValueError(f"{name}: expected at most {most}, got {value}")
            return
        above, below = self.open_at
        fits = (self.least < value if above else self.least <= value) and (
            value < self.most if below else value <= self.most
        )
        if not (math.isfinite(value) and fits):
            raise ValueError(f"{name}: expected {self._expected()}, got {value}")
        if value and not SMALLEST <= abs(value) <= LARGEST:
            raise ValueError(f"{name}: expected a number that float32 can hold, got {value}")

    def _expected(self) -> str:
        above, below = self.open_at
        if math.isfinite(self.most):
            ends = f"{self.least:g}", f"{self.most:g}"
            if not (above or below):
                return f"a number in {ends[0]}..{ends[1]}"
            return f"a number in {'(' if above else '['}{', '.join(ends)}{')' if below else ']'}"
        if math.isfinite(self.least):
            return f"a finite number {'>' if above else '>='} {self.least:g}"
        return "a finite number"


def at_least(least: float) -> Limits:
    """Limits without an upper end."""
    return Limits(least)


def check_hint(name: str, hint: Any, value: Any) -> None:
    """Raises ValueError unless numbers are within the limits that their annotation gives them."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        base, *metadata = inner
        limits = [each for each in metadata if isinstance(each, Limits)]
        for each in limits:
            each.check(name, float(value) if base is float else value)
        if not limits:
            check_hint(name, base, value)
    elif origin in (Union, types.UnionType):
        if value is not None:
            check_hint(name, next(each for each in inner if each is not type(None)), value)
    elif origin is tuple:
        for i, each in enumerate(value):
            check_hint(name, inner[0] if inner[-1] is Ellipsis else inner[i], each)
    elif hint in (int, float):
        Limits().check(name, hint(value))
