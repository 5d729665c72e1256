"""Settings that all experiments share, and checks of command-line options."""

import argparse
import math
import re
import types
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import MISSING, dataclass, fields
from operator import le, lt
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import tyro

from experiments.folders import read_config
from experiments.processes import Meeting

MOST = 2**31 - 1  # largest accepted integer, that of int32
SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Limits:
    """Limits of a number: from `least` to `most`, excluding the ends at which `open_at` is True.

    Integers must fit into int32, other numbers into float32.
    """

    least: float = -math.inf
    most: float = math.inf
    open_at: tuple[bool, bool] = (False, False)

    def check(self, name: str, value: float) -> None:
        """Raises ValueError unless `value` lies within the limits."""
        above, below = (lt if is_open else le for is_open in self.open_at)
        if isinstance(value, int):
            most = int(min(self.most, MOST))
            fits = self.least <= value <= most
            expected = f"at least {self.least:g}" if value < self.least else f"at most {most}"
        else:
            within = math.isfinite(value) and above(self.least, value) and below(value, self.most)
            fits = within and (not value or SMALLEST <= abs(value) <= LARGEST)
            expected = "a number that float32 can hold" if within else self._expected()
        if not fits:
            raise ValueError(f"{name}: expected {expected}, got {value}")

    def _expected(self) -> str:
        above, below = self.open_at
        if math.isfinite(self.most):
            return f"a number in {'(' if above else '['}{self.least:g}, {self.most:g}{')' if below else ']'}"
        bound = f" {'>' if above else '>='} {self.least:g}" if math.isfinite(self.least) else ""
        return f"a finite number{bound}"


at_least = Limits  # without an upper limit
POSITIVE = Limits(0, open_at=(True, False))
Count = Annotated[int, at_least(1)]
Seed = Annotated[int, at_least(0)]
Positive = Annotated[float, POSITIVE]
NotNegative = Annotated[float, at_least(0)]
Share = Annotated[float, Limits(0, 1)]
_refused: ContextVar[list[ValueError] | None] = ContextVar("refused", default=None)


def check_hint(name: str, hint: Any, value: Any) -> None:
    """Raises ValueError unless numbers are within the limits of their annotation."""
    origin, inner = get_origin(hint), get_args(hint)
    if value is None:
        return
    if origin in (Union, types.UnionType):
        check_hint(name, next(each for each in inner if each is not type(None)), value)
    elif origin is tuple:
        for i, each in enumerate(value):
            check_hint(name, inner[0] if inner[-1] is Ellipsis else inner[i], each)
    elif origin is Annotated:
        limits = [each for each in inner if isinstance(each, Limits)]
        for each in limits:
            each.check(name, inner[0](value))
        if not limits:
            check_hint(name, inner[0], value)
    elif hint in (int, float):
        Limits().check(name, hint(value))


class Options:
    """Base class of command-line options: a dataclass that checks its fields when it is created.

    Numbers are annotated with their `Limits`; `check` adds further conditions.
    """

    PREFIX: ClassVar[str] = ""  # prefix of its options if it is a field of another dataclass

    def __post_init__(self) -> None:
        try:
            hints = get_type_hints(type(self), include_extras=True)
            for field in fields(self):  # pyright: ignore[reportArgumentType]
                check_hint(self.option(field.name), hints[field.name], getattr(self, field.name))
            self.check()
        except ValueError as error:
            refused = _refused.get()
            if refused is None:
                raise
            refused.append(error)

    def check(self) -> None:
        """Raises ValueError unless the fields are consistent."""

    @classmethod
    def option(cls, name: str) -> str:
        """Returns the command-line option that sets a field."""
        return f"--{cls.PREFIX}{name.replace('_', '-')}"

    def expect(self, name: str, expected: str, holds: bool) -> None:
        """Raises ValueError, naming the option of the field, unless `holds`."""
        if not holds:
            got = getattr(self, name)
            got = " ".join(map(str, got)) or "none" if isinstance(got, tuple) else got
            raise ValueError(f"{self.option(name)}: expected {expected}, got {got}")

    def expect_distinct(self, *names: str) -> None:
        """Raises ValueError unless the tuples in these fields are non-empty and have no duplicates."""
        for name in names:
            given = getattr(self, name)
            distinct = given is None or len(set(given)) == len(given) > 0
            self.expect(name, "at least one, and each at most once", distinct)


def parse(config: Callable[..., Any], prog: str) -> Any:
    """Parses the command line. With `--resume`, options default to those of the run in `--out`.

    Raises:
      ValueError: for an option that the configuration refuses; tyro would print its message in a frame.
      SystemExit: after `--help`, and for options that tyro itself refuses.
    """
    resumed = _resumed(config)
    refused: list[ValueError] = []
    token = _refused.set(refused)
    try:
        given = tyro.cli(config, prog=prog, **({"default": resumed} if resumed else {}))
    finally:
        _refused.reset(token)
    if refused:
        raise refused[0]
    return given


def _resumed(config: Any) -> Any:
    """Reads the configuration of the run to resume; returns None if the folder holds no such run."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--resume", action="store_true")
    options.add_argument("--out", nargs="?", type=Path, default=defaults_of(config).get("out"))
    told, _ = options.parse_known_args()
    if not (issubclass(config, Settings) and told.resume and told.out):
        return None
    held = read_config(told.out)
    try:
        return held and config.restored(held)
    except (TypeError, ValueError, LookupError, AttributeError):
        return None  # the folder of another program: claiming it raises a FolderError


def imported(name: str, path: str) -> Callable[..., Any]:
    """Imports `MODULE:FUNCTION`; raises a ValueError about the option `name` if that fails."""
    try:
        found = resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        got = f"{path} ({error}; the module must be on PYTHONPATH)"
        raise ValueError(f"{name}: expected MODULE:FUNCTION, got {got}") from None
    if not callable(found):
        raise ValueError(f"{name}: expected MODULE:FUNCTION, got {path}, which is {found!r}")
    return found


def as_option(config: Any, error: Exception) -> str:
    """Returns the message of an error, with the name of a field of `config` replaced by its option."""
    name, colon, rest = str(error).partition(": expected ")
    names = [field.name for field in fields(config)] if isinstance(config, Options) else []  # pyright: ignore[reportArgumentType]
    name = "data" if name == "source" else name
    return f"{config.option(name)}: expected {rest}" if colon and name in names else str(error)


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """Settings that all experiments share; they do not affect the results."""

    PRESETS: ClassVar[Mapping[str, Any]] = {}
    """Named tuple for each `--preset`: defaults of the options that are None, and further settings."""

    out: Path  # Folder for config.json, results.nc, summary.json and the figures.
    resume: bool = False  # Resume the run in --out, if there is one; its options need not be given again.
    distributed: bool = False
    """Run on all hosts of a job, with one process per host and --out on a shared file system.
    Jobs of SLURM, Open MPI and GKE are detected; elsewhere, give the next three options as well."""
    coordinator: str | None = None  # Address HOST:PORT of process 0, reachable from all hosts.
    processes: Count | None = None  # Number of processes.
    process: Annotated[int, at_least(0)] | None = None  # Index of this process, starting at 0.

    @property
    def meeting(self) -> Meeting | None:
        """Coordinator, number and index of processes; None for a run in a single process."""
        told = (self.coordinator, self.processes, self.process)
        if not self.distributed:
            with_them = "True with --coordinator, --processes or --process"
            self.expect("distributed", with_them, told == (None,) * 3)
            return None
        all_or_none = "--coordinator, --processes and --process, or none of them"
        self.expect("process", all_or_none, told.count(None) in (0, 3))
        if self.coordinator is not None and self.processes is not None and self.process is not None:
            port = re.fullmatch(r".+:(\d{1,5})", self.coordinator)
            self.expect("coordinator", "HOST:PORT", port is not None and int(port[1]) < 2**16)
            self.expect("process", f"a number in 0..{self.processes - 1}", self.process < self.processes)
        return Meeting(*told)

    @property
    def chosen(self) -> Any:
        """The preset, with its values replaced by options that are given."""
        preset: Any = self.PRESETS[getattr(self, "preset")]  # noqa: B009 (a field of settings with presets)
        given = {name: getattr(self, name, None) for name in preset._fields}
        return preset._replace(**{name: value for name, value in given.items() if value is not None})

    def deciding(self) -> dict[str, Any]:
        """Fields that determine the results."""
        common = {field.name for field in fields(Settings)}
        values = {**vars(self), **(self.chosen._asdict() if self.PRESETS else {})}
        return {field.name: values[field.name] for field in fields(self) if field.name not in common}

    @classmethod
    def restored(cls, held: Mapping[str, Any]) -> "Settings":
        """Restores settings from the JSON of `deciding`."""
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in held.items()}
        return cls(**values)


def defaults_of(config: Any) -> dict[str, Any]:
    """Returns the default of every field that has one."""
    return {field.name: field.default for field in fields(config) if field.default is not MISSING}
