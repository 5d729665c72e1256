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
    """The values that a number may have: from `least` to `most`, without the ends that `open_at` names.

    Integers have to fit into int32, other numbers into float32.
    """

    least: float = -math.inf
    most: float = math.inf
    open_at: tuple[bool, bool] = (False, False)

    def check(self, name: str, value: float) -> None:
        """Raises ValueError unless `value` lies within the limits."""
        above, below = self.open_at
        expected = None
        if isinstance(value, int):
            if value < self.least:
                expected = f"at least {self.least:g}"
            elif value > min(self.most, MOST):
                expected = f"at most {int(min(self.most, MOST))}"
        elif not math.isfinite(value) or not (
            self.least < value < self.most or value == (None if above else self.least)
            or value == (None if below else self.most)
        ):  # fmt: skip
            expected = self._expected()
        elif value and not SMALLEST <= abs(value) <= LARGEST:
            expected = "a number that float32 can hold"
        if expected is not None:
            raise ValueError(f"{name}: expected {expected}, got {value}")

    def _expected(self) -> str:
        above, below = self.open_at
        if math.isfinite(self.most):
            if not (above or below):
                return f"a number in {self.least:g}..{self.most:g}"
            return f"a number in {'(' if above else '['}{self.least:g}, {self.most:g}{')' if below else ']'}"
        if math.isfinite(self.least):
            return f"a finite number {'>' if above else '>='} {self.least:g}"
        return "a finite number"


at_least = Limits  # without an upper end


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
