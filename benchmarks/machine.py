"""Date, machine and versions of results, and the files and command lines of all benchmarks."""

import datetime
import os
import platform
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import matplotlib.pyplot as plt
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image

from experiments import harness, reporting

command_line = partial(harness.command_line, package="benchmarks")
NOT_RESUMED = "nothing is written"
"""Message after the interruption of a benchmark that cannot be resumed."""


def describe_machine() -> dict[str, Any]:
    """Returns system, processor, cores and devices of this machine."""
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind} ({jax.default_backend()})"
    system, processor = platform.platform(), platform.machine()
    return {"system": system, "processor": processor, "cores": os.cpu_count(), "device": device}


def head() -> dict[str, Any]:
    """Returns date, machine and versions, the first entries of a result file."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"date": date, "machine": describe_machine(), "versions": harness.versions()}


def load() -> float | None:
    """Returns the load average of the last minute; None where the system does not report it."""
    with suppress(AttributeError, OSError):
        return os.getloadavg()[0]
    return None


def write(config: Any, name: str, **entries: Any) -> None:
    """Writes `NAME.json` to --out: date, machine and versions, the options of the run, and `entries`."""
    options = {key: value for key, value in vars(config).items() if key not in ("out", "data")}
    harness.write_json(config.out / f"{name}.json", {**head(), "config": options, **entries})


def finished(figure: Figure, note: str, **labels: Any) -> Figure:
    """Adds title and labels, a legend beside the only axes, and a note below, to a figure."""
    (axes,) = figure.axes
    axes.set(**labels)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    reporting.footnote(figure, note)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as a PNG with 256 colours, a third of the usual size, and closes it."""
    harness.write_whole(path, partial(_draw, figure))
    plt.close(figure)


def _draw(figure: Figure, path: Path) -> None:
    reporting.draw(figure, path, dpi=100)
    with Image.open(path) as drawn:
        few_colours = drawn.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few_colours.save(path, format="png", optimize=True)


def run_with_table(experiment: harness.Experiment, config: Any) -> xr.Dataset:
    """Runs an experiment, and writes table.md beside its results, headed by date, machine and versions."""
    results = cast(xr.Dataset, experiment.run(config))
    busy = load()
    machine = f"{platform.platform()}, {os.cpu_count()} cores"
    machine += "" if busy is None else f", load {busy:.1f} at the end"
    versions = ", ".join(f"{name} {version}" for name, version in harness.versions().items())
    table = experiment.report.table(experiment.report.rows(harness.in_float64(results)))
    text = f"{datetime.date.today()}; {machine}; {versions}\n\n{table}\n"
    harness.write_whole(config.out / "table.md", lambda path: path.write_text(text))
    return results
