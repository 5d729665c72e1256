"""Writes finished runs with units, long names and versions, reads them from their folders, and draws them."""

import json
import platform
import shutil
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments import folders, processes, reporting
from experiments.folders import FolderError, without_nan, write_whole

Results = xr.Dataset | xr.DataTree


class Report(Protocol):
    """Report module of an experiment: summary rows, the printed table, and figures.

    It may define `VARIABLES`: units and long names by the name of a variable or an `fnmatch` pattern.
    """

    def rows(self, results: Any, /) -> list[dict[str, Any]]: ...
    def table(self, summary: list[dict[str, Any]], /) -> str: ...
    def figures(self, results: Any, /) -> Mapping[str, Figure]: ...


class FinishedRun(NamedTuple):
    """A finished run of an experiment, read from its folder."""

    folder: Path
    experiment: str
    config: dict[str, Any]
    results: Results
    report: Report


def read_run(folder: Path) -> FinishedRun:
    """Reads the results of a finished run; raises FolderError if the folder holds none."""
    path = folder / "results.nc"
    if not path.is_file():
        begun = (folder / "config.json").is_file()
        got = f"{folder}, an unfinished run (finish it with --resume)" if begun else folder
        raise FolderError(f"FOLDER: expected the folder of a finished run, with results.nc, got {got}")
    with folders.named_if_damaged(path, "results", "run it again in another folder"):
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            tree = tree.load()
        name, config = str(tree.attrs["experiment"]), json.loads(tree.attrs["config"])
    if not (name.isidentifier() and find_spec(f"experiments.{name}")):
        raise FolderError(f"FOLDER: expected results of an experiment, got results of {name!r} in {folder}")
    results = tree if tree.children else tree.to_dataset()
    report: Any = import_module(f"experiments.{name}.report")
    return FinishedRun(folder, name, config, results, report)


def in_float64(results: Any) -> Any:
    """Converts all floats to float64, in which sums of float32 values do not overflow."""
    if isinstance(results, xr.DataTree):
        return results.map_over_datasets(in_float64)
    floats = {name: v.astype(float) for name, v in results.data_vars.items() if v.dtype.kind == "f"}
    return results.assign(floats)


def draw_figures(folder: Path, report: Report, results: Results, file_format: str = "png") -> list[Path]:
    """Draws all figures into a folder and returns their paths; floats of `results` must be float64."""
    paths = []
    for name, figure in report.figures(results).items():
        paths.append(folder / f"{name}.{file_format}")
        write_whole(paths[-1], partial(reporting.draw, figure, file_format=file_format))
        plt.close(figure)
    return paths


SHARED_VARIABLES = {
    "*seconds*": ("s", "time"),
    "*accuracy*": ("1", "share of samples classified correctly"),
    "seed": ("1", "index of the seed"),
    "learning_rate": ("1", "learning rate"),
}
"""Units and long names of variables that several experiments have."""


def described(results: Any, report: Report) -> Any:
    """Adds the attributes `units` and `long_name` to all variables and axes.

    Variables in neither `report.VARIABLES` nor `SHARED_VARIABLES` get the unit 1 and their own names.
    """
    if isinstance(results, xr.DataTree):
        return results.map_over_datasets(partial(described, report=report))
    table = {**getattr(report, "VARIABLES", {}), **SHARED_VARIABLES}
    axes = {name: np.arange(size) for name, size in results.sizes.items() if name not in results.coords}
    results = results.assign_coords(axes)
    for name, variable in results.variables.items():
        found = [told for pattern, told in table.items() if fnmatchcase(str(name), pattern)]
        units, long_name = [*found, ("1", str(name).replace("_", " "))][0]
        variable.attrs = {"units": units, "long_name": long_name, **variable.attrs}
    return results


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that results depend on, and the devices."""
    packages = {name: version(name) for name in ("lax_learning", "jax", "jaxlib", "optax", "numpy")}
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return {"python": platform.python_version(), **packages, "devices": devices}


def publish(out: Path, experiment: str, config: Mapping[str, Any], results: Results, report: Report) -> None:
    """Writes results, summary and figures, prints the table, and deletes the checkpoints."""
    if not processes.is_first():
        return
    results.attrs.update(experiment=experiment, config=json.dumps(config))
    results = described(results, report)
    folders.write_dataset(out / "results.nc", results)
    results = in_float64(results)
    rows = without_nan(report.rows(results))
    null = "no finite value: all seeds diverged, or the metric does not apply; `n` of `seeds` are finite"
    told = {"experiment": experiment, "versions": versions(), "config": dict(config), "null": null}
    folders.write_json(out / "summary.json", {**told, "rows": rows})
    draw_figures(out, report, results)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    print(report.table(rows))
    print(f"\nresults.nc, summary.json and figures: {out}")
