"""Studies of the experiment: parts that run one after another, and reports on their results."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import xarray as xr
from matplotlib.figure import Figure
from tqdm import tqdm

from experiments.symbolic_discriminator.config import Config

Rows = list[dict[str, Any]]


class Part(NamedTuple):
    """Part of a study, and the number of steps by which it advances the progress bar."""

    run: Callable[[Path, tqdm], xr.Dataset]
    steps: int


class Study(NamedTuple):
    """Study of the experiment: its parts, how their results are merged, summary rows, and figures."""

    parts: Callable[[Config], Mapping[str, Part]]
    merge: Callable[[Config, Sequence[xr.Dataset]], xr.Dataset]
    rows: Callable[[xr.Dataset], Rows]
    figures: Sequence[Callable[[xr.Dataset], Figure]]  # their names are those of the files
