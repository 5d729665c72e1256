"""Studies of the experiment: parts that run one after another, and reports on their results."""

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
    """A part of a study, with its cost for the progress bar, roughly in milliseconds."""

    run: Callable[[Path, tqdm], xr.Dataset]
    cost: int


class Study(NamedTuple):
    """A study of the experiment: its parts, how their results are merged, summary rows, and figures."""

    parts: Callable[[Config], dict[str, Part]]
    merge: Callable[[Config, Sequence[xr.Dataset]], xr.Dataset]
    rows: Callable[[xr.Dataset], Rows]
    figures: Callable[[xr.Dataset], Figures]


def shares(cost: int, number: int) -> list[int]:
    """Splits a cost into `number` nearly equal integers."""
    return np.diff(np.linspace(0, cost, number + 1).astype(int)).tolist()
