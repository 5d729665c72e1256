"""Studies of the experiment: parts that run one after another, and reports of their results."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import xarray as xr
from matplotlib.figure import Figure
from tqdm import tqdm

from experiments.symbolic_discriminator.config import Config


class Part(NamedTuple):
    """A part of a study, written whole or not at all.

    Fields:
      run: `(folder for checkpoints, progress) -> results`; it moves the progress on by `cost` in all.
      cost: roughly in milliseconds.
    """

    run: Callable[[Path, tqdm], xr.Dataset]
    cost: int


class Study(NamedTuple):
    """One of the questions of the experiment.

    Fields:
      parts: by name.
      merge: `(config, results of the parts in order) -> results`.
      rows: of the summary, as `reporting.summary_rows` makes them.
      figures: by name.
    """

    parts: Callable[[Config], dict[str, Part]]
    merge: Callable[[Config, Sequence[xr.Dataset]], xr.Dataset]
    rows: Callable[[xr.Dataset], list[dict[str, Any]]]
    figures: Callable[[xr.Dataset], Mapping[str, Figure]]
