"""Search space of a sweep: a TOML file, checked against the hyper-parameters of the experiment and memory."""

from collections.abc import Mapping
from functools import partial
from itertools import count, product
from math import gcd, prod
from typing import Any, NamedTuple

import jax
import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from experiments import memory
from experiments.settings import Limits, at_least, defaults_of
from experiments.sweep.config import Config
from experiments.sweeping import Program, Sweepable

MOST_POINTS = 1_000_000


class Space(NamedTuple):
    """Hyper-parameters of an experiment: those that are searched, and the values of all others."""

    sweepable: Sweepable
    fixed: dict[str, Any]
    searched: dict[str, BaseDistribution]
    grid: dict[str, list[Any]]  # values of those with `choices` or `points`; only for the grid sampler

    def point(self, index: int) -> dict[str, Any]:
        """Returns a point of the grid, whose first points are spread over all of it; {} without a grid."""
        sizes = [len(values) for values in self.grid.values()]
        size = prod(sizes)
        step = next(s for s in count(max(1, int(0.618 * size))) if gcd(s, size) == 1)
        places = np.unravel_index(index * step % size, sizes, order="F")
        return {name: values[i] for (name, values), i in zip(self.grid.items(), places, strict=True)}


def read_space(config: Config, sweepable: Sweepable) -> Space:
    """Reads the space of a sweep.

    Raises:
      ValueError: for an unknown hyper-parameter, a value of the wrong type or out of limits, nothing to
        search, or a space that does not fit the sampler.
    """
    space = parse_space(config.table, sweepable)
    if config.sampler != "grid":
        return space._replace(grid={})
    for name in space.searched:
        with_points = "points = N with --sampler grid"
        _expect(name in space.grid, f"--space: {name}", with_points, "a range without points")
    size = prod(map(len, space.grid.values()))
    _expect(config.trials <= size, "--trials", f"at most {size}, the points of the grid", config.trials)
    return space


def parse_space(table: Mapping[str, Any], sweepable: Sweepable) -> Space:
    """Parses a search space."""
    kinds = {**sweepable.traced, **sweepable.static}
    space = Space(sweepable, sweepable.defaults(), {}, {})
    for name, value in table.items():
        _expect(name in kinds, "--space", f"fields among {', '.join(kinds)}", repr(name))
        field, kind = f"--space: {name}", kinds[name]
        checked = partial(_checked, kind, sweepable.limits.get(name, at_least(0)))
        if not isinstance(value, dict):
            space.fixed[name] = checked(field, value)
            continue
        del space.fixed[name]
        if set(value) == {"choices"}:
            choices = value["choices"]
            some = isinstance(choices, list) and len(choices) > 0
            _expect(some, field, "a list of at least one choice", repr(choices))
            choices = [checked(f"{field}: choices", choice) for choice in choices]
            _expect(len(set(choices)) == len(choices), field, "each choice once", value["choices"])
            space.searched[name], space.grid[name] = CategoricalDistribution(choices), choices
            continue
        ranged = {"low", "high"} <= set(value) <= {"low", "high", "log", "points"}
        expected = "a value, { choices } or { low, high } with optional log and points"
        _expect(ranged, field, expected, f"a table with {', '.join(value) or 'nothing'}")
        _expect(isinstance(kind, int | float), field, "{ choices }, since it is not a number", "a range")
        low, high = (checked(f"{field}: {end}", value[end]) for end in ("low", "high"))
        log, points = value.get("log", False), value.get("points", 2)
        _expect(isinstance(log, bool), f"{field}: log", "true or false", repr(log))
        _expect(low < high, field, "low below high", f"{low} and {high}")
        _expect(low > 0 or not log, f"{field}: low", "a number > 0 for a logarithmic scale", low)
        some = type(points) is int and 2 <= points <= MOST_POINTS
        _expect(some, f"{field}: points", f"an integer in 2..{MOST_POINTS}", repr(points))
        distribution = IntDistribution if isinstance(kind, int) else FloatDistribution
        space.searched[name] = distribution(low, high, log=log)
        if "points" in value:
            spaced = (np.geomspace if log else np.linspace)(low, high, points).clip(low, high).tolist()
            space.grid[name] = list(dict.fromkeys(map(round, spaced) if isinstance(kind, int) else spaced))
    _expect(bool(space.searched), "--space", "at least one field with choices or a range", "none")
    return space


def _expect(holds: bool, field: str, expected: str, got: Any) -> None:
    if not holds:
        raise ValueError(f"{field}: expected {expected}, got {got}")


def _checked(kind: Any, limits: Limits, field: str, value: Any) -> Any:
    """Returns a value after checking that it is a number within limits, an int, a string, or a choice."""
    if isinstance(kind, tuple):
        _expect(value in kind, field, f"one of {', '.join(kind)}", repr(value))
    elif isinstance(kind, str):
        _expect(isinstance(value, str), field, "text", repr(value))
    elif isinstance(kind, int):
        _expect(type(value) is int, field, "an integer", repr(value))
        at_least(1).check(field, value)
    else:
        _expect(type(value) in (int, float), field, "a finite number", repr(value))
        value = float(str(value))  # inf for an integer too large for float64
        limits.check(field, value)
    return value


def check_runs(config: Config, space: Space) -> None:
    """Checks all programs with static hyper-parameters at the ends of their ranges, and their memory.

    Raises a ValueError about the hyper-parameter that cannot run, or whose size does not fit into memory.
    """
    sweepable = space.sweepable
    traced = dict.fromkeys(sweepable.traced, memory.floats())
    given = {"--seeds": config.seeds, "--batch": min(config.batch, config.trials)}
    defaults = {f"--{name}": value for name, value in defaults_of(Config).items()} | sweepable.defaults()
    ends = [_ends(space, name) for name in sweepable.static]
    for values in product(*ends):
        static = dict(zip(sweepable.static, values, strict=True))
        numbers = {name: end[0] for name, end in zip(static, ends, strict=True) if type(end[0]) is int}
        if not numbers.items() <= static.items():
            _made(sweepable, static)
            continue

        def needed(sizes: Mapping[str, int], static: Mapping[str, Any] = static) -> int:
            program = _made(sweepable, {name: sizes.get(name, value) for name, value in static.items()})
            carry = jax.eval_shape(program.init, jax.random.key(0), traced, program.shared)
            return sizes["--seeds"] * sizes["--batch"] * memory.bytes_of(carry)

        options = {**{name: f"--space: {name}" for name in numbers}, **{name: name for name in given}}
        memory.check_fits(needed, numbers | given, defaults, options.__getitem__)


def _ends(space: Space, name: str) -> list[Any]:
    """Returns all strings that a hyper-parameter may be, or its largest and smallest number."""
    if name in space.fixed:
        return [space.fixed[name]]
    offered: Any = space.searched[name]
    values = getattr(offered, "choices", None) or (offered.low, offered.high)
    return list(values) if isinstance(values[0], str) else [max(values), min(values)]


def _made(sweepable: Sweepable, static: Mapping[str, Any]) -> Program:
    """Makes a program; errors about an option or argument are raised about its hyper-parameter."""
    try:
        return sweepable.make(static)
    except (ValueError, OSError, ImportError) as error:
        name, _, rest = str(error).partition(": ")
        name = name.removeprefix("--").replace("-", "_").removeprefix("rule_").replace("source", "data")
        message = f"{name}: {rest}" if name in sweepable.defaults() else str(error)
        raise ValueError(f"--space: {message}") from None
