"""Redraws the figures of a finished run from its results."""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from experiments import harness
from experiments.finished import draw_figures, in_float64, read_run
from experiments.settings import Options


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """Redraw all figures of a finished run from its results.nc, without running the experiment again."""

    folder: Positional[Path]  # Folder of the run (its --out).
    format: Literal["png", "pdf"] = "png"  # Format of the figures.


def run(config: Config) -> None:
    """Draws the figures into the folder of the run."""
    found = read_run(config.folder)
    harness.make_folder(config.folder)
    for path in draw_figures(config.folder, found.report, in_float64(found.results), config.format):
        print(path)


main = partial(harness.command_line, "plot", Config, run, stopped="figures already drawn are complete")

if __name__ == "__main__":
    sys.exit(main())
