"""The space of a sweep: a TOML file, checked against what the experiment offers."""

import tomllib
from collections.abc import Iterator, Mapping
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from experiments.settings import Limits, at_least
from experiments.sweeping import Sweepable

MOST_CORNERS, MOST_POINTS = 10_000, 1_000_000
RANGE = {"low", "high", "log", "points"}


class Space(NamedTuple):
    """Space that is searched, and values that are fixed.

    Fields:
      given: the table as it was read.
      fixed: values of the hyper-parameters that stay; those the file does not name have their defaults.
      searched: a distribution for each of the others.
      grid: values of each of these; none for a range without `points`.
      bounds: all choices of each of these, or both ends of its range.
    """

    given: dict[str, Any]
    fixed: dict[str, Any]
    searched: dict[str, BaseDistribution]
    grid: dict[str, list[Any]]
    bounds: dict[str, list[Any]]

    def corners(self, static: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """All values of the static hyper-parameters that can come together, of ranges the ends."""
        values = [self.bounds.get(name, [self.fixed.get(name)]) for name in static]
        if prod(map(len, values)) > MOST_CORNERS:
            firsts = [of[0] for of in values]
            for i, of in enumerate(values):
                yield from (dict(zip(static, [*firsts[:i], v, *firsts[i + 1 :]], strict=True)) for v in of)
        else:
            yield from (dict(zip(static, corner, strict=True)) for corner in product(*values))


def read_space(path: Path, sweepable: Sweepable) -> Space:
    """Reads a space.

    Raises:
      ValueError: if there is no such file, if it is no TOML, names a field that the experiment has not,
        gives one of another type or outside of its range, or leaves nothing to search. The message names
        field, what was expected and what came.
    """
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--space: expected a TOML file, got {path} ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--space: expected valid TOML, got {path} ({error})") from None
    return parse_space(given, sweepable, "--space")


def parse_space(given: Mapping[str, Any], sweepable: Sweepable, where: str) -> Space:
    """The space that a table stands for; `where` begins the messages of errors."""
    kinds = {**sweepable.traced, **sweepable.static}
    space = Space(dict(given), sweepable.defaults(), {}, {}, {})
    for name, value in given.items():
        if name not in kinds:
            raise ValueError(f"{where}: expected fields among {', '.join(kinds)}, got {name!r}")
        field, kind = f"{where}: {name}", kinds[name]
        limits = sweepable.limits.get(name, at_least(0))
        if not isinstance(value, dict):
            space.fixed[name] = _checked(field, kind, value, limits)
            continue
        del space.fixed[name]
        if set(value) == {"choices"}:
            space.bounds[name] = space.grid[name] = _choices(field, kind, value["choices"], limits)
            space.searched[name] = CategoricalDistribution(tuple(space.grid[name]))
        elif {"low", "high"} <= set(value) <= RANGE:
            space.searched[name], space.grid[name] = _range(field, kind, value, limits)
            space.bounds[name] = [value["low"], value["high"]]
        else:
            expected = "a value, { choices } or { low, high } with optional log and points"
            raise ValueError(
                f"{field}: expected {expected}, got a table with {', '.join(value) or 'nothing'}"
            )
    if not space.searched:
        raise ValueError(f"{where}: expected at least one field with choices or a range, got none")
    return space


def _checked(field: str, kind: Any, value: Any, limits: Limits) -> Any:
    """The value, if it is of a kind: a traced number within limits, an int, text, or one of several texts."""
    match kind:
        case float():
            if isinstance(value, int | float) and not isinstance(value, bool):
                try:
                    number = float(value)
                except OverflowError:  # of an integer
                    number = float("inf")
                limits.check(field, number)
                return number
            expected = "a finite number"
        case int():
            if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
                Limits(1).check(field, value)
                return value
            expected = "an integer of at least 1"
        case tuple():
            if isinstance(value, str) and value in kind:
                return value
            expected = f"one of {', '.join(kind)}"
        case _:
            if isinstance(value, str):
                return value
            expected = "text"
    raise ValueError(f"{field}: expected {expected}, got {value!r}")


def _choices(field: str, kind: Any, values: Any, limits: Limits) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise ValueError(f"{field}: expected a list of at least one choice, got {values!r}")
    checked = [_checked(f"{field}: choices", kind, value, limits) for value in values]
    if len(set(checked)) != len(checked):
        raise ValueError(f"{field}: expected each choice once, got {values!r}")
    return checked


def _range(
    field: str, kind: Any, table: Mapping[str, Any], limits: Limits
) -> tuple[BaseDistribution, list[Any]]:
    if not isinstance(kind, int | float):
        raise ValueError(f"{field}: expected {{ choices }}, since it is no number, got a range")
    low, high = (_checked(f"{field}: {end}", kind, table[end], limits) for end in ("low", "high"))
    log, points = table.get("log", False), table.get("points")
    if not isinstance(log, bool):
        raise ValueError(f"{field}: log: expected true or false, got {log!r}")
    if not low < high:
        raise ValueError(f"{field}: expected low below high, got {low} and {high}")
    if log and low == 0:
        raise ValueError(f"{field}: low: expected a number > 0 for a logarithmic scale, got 0")
    if isinstance(kind, int):
        distribution: BaseDistribution = IntDistribution(low, high, log=log)
    else:
        distribution = FloatDistribution(low, high, log=log)
    if points is None:
        return distribution, []
    if not isinstance(points, int) or isinstance(points, bool) or not 2 <= points <= MOST_POINTS:
        raise ValueError(f"{field}: points: expected an integer in 2..{MOST_POINTS}, got {points!r}")
    spaced = (np.geomspace if log else np.linspace)(low, high, points).clip(low, high)
    ints = isinstance(kind, int)
    return distribution, list(dict.fromkeys(round(v) if ints else float(v) for v in spaced))
