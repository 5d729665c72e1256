"""Measurements kept in a folder, so that a run that was stopped goes on: a file a rule and setting."""

from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.quality.settings import Setting
from experiments import harness

Measured = dict[str, np.ndarray]


def _path(folder: Path, rule: str, setting: Setting) -> Path:
    return folder / ("-".join([rule, *map(str, vars(setting).values())]) + ".npz")


def load(folder: Path, rule: str, setting: Setting) -> Measured | None:
    """Reads the measurements of a rule at a setting; None if there are none."""
    path = _path(folder, rule, setting)
    if not path.exists():
        return None
    with np.load(path) as held:
        return dict(held)


def save(folder: Path, rule: str, setting: Setting, measured: Measured) -> None:
    """Writes it in one step."""
    harness.write_whole(_path(folder, rule, setting), partial(_write, measured))


def _write(measured: Measured, path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, **measured)  # type: ignore[arg-type]
