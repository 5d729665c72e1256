"""Studies of the experiment: parts that run one after another, and reports of their results."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from tqdm import tqdm

from experiments.symbolic_discriminator.config import Config

Rows = list[dict[str, Any]]
Figures = Mapping[str, Figure]


class Part(NamedTuple):
    """A part of a study, which moves the progress on by its cost, roughly in milliseconds."""

    run: Callable[[Path, tqdm], xr.Dataset]
    cost: int


class Study(NamedTuple):
    """A question of the experiment: parts by name, their results in one, rows of the summary, and figures."""

    parts: Callable[[Config], dict[str, Part]]
    merge: Callable[[Config, Sequence[xr.Dataset]], xr.Dataset]
    rows: Callable[[xr.Dataset], Rows]
    figures: Callable[[xr.Dataset], Figures]


def shares(cost: int, number: int) -> list[int]:
    """Splits a cost into `number` almost equal integers."""
    return np.diff(np.linspace(0, cost, number + 1).astype(int)).tolist()
