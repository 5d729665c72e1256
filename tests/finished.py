"""Finished runs: files, units, long names, figures that can be drawn again, and results that diverged."""

import io
import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

from experiments import harness, plot, reporting
from experiments.finished import SHARED_VARIABLES, read_run
from tests.command_line import call_main


def check_folder(out: Path, *, parts: Sequence[str], figures: Sequence[str]) -> None:
    """The folder holds all files; every variable and axis has units and a long name written for it."""
    files = {"config.json", "results.nc", "summary.json", *parts}
    assert {p.name for p in out.iterdir()} == files | {f"{name}.png" for name in figures}
    run = read_run(out)
    known = (*getattr(run.report, "VARIABLES", ["*"]), *SHARED_VARIABLES)
    datasets = [node.to_dataset() for node in getattr(run.results, "children", {}).values()] or [run.results]
    for results in datasets:
        assert set(results.sizes) <= set(results.coords)
        for name, variable in results.variables.items():
            assert {"units", "long_name"} <= set(variable.attrs) and variable.attrs["long_name"], name
            assert any(fnmatchcase(str(name), pattern) for pattern in known), name


def check_redrawn(out: Path) -> None:
    """The figures come out of the results once more as they were."""
    before = {path: path.read_bytes() for path in out.glob("*.png")}
    assert all(content[:4] == b"\x89PNG" for content in before.values())
    for path in before:
        path.unlink()
    code, printed, errors = call_main(plot.main, out)
    assert code == 0 and set(printed.split()) == set(map(str, before)), errors
    assert {path: path.read_bytes() for path in out.glob("*.png")} == before


def row_of(rows: Path | list[dict[str, Any]], **named: Any) -> dict[str, Any]:
    """The only row with these entries, of a report or of the summary in a folder."""
    of_all = json.loads((rows / "summary.json").read_text())["rows"] if isinstance(rows, Path) else rows
    (found,) = (row for row in of_all if named.items() <= row.items())
    return found


def _poisoned(dataset: xr.Dataset, values: Sequence[float]) -> xr.Dataset:
    """A dataset whose floats over the first seeds have become these; what is a constant of the run stays."""
    dataset = dataset.copy(deep=True)
    for variable in dataset.data_vars.values():
        if variable.dtype.kind == "f" and "seed" in variable.dims:
            for seed, value in enumerate(values[: variable.sizes["seed"]]):
                variable[{"seed": seed}] = value
    return dataset


def check_diverged(report: Any, results: xr.Dataset | xr.DataTree) -> set[str]:
    """Makes rows, table and figures of results that diverged; the metrics that are told where all did."""
    plt.close("all")
    told = set()
    for values in ((np.nan,), (np.inf, 3e38), (np.nan,) * 10):
        poison: Any = results.map_over_datasets if isinstance(results, xr.DataTree) else results.pipe
        bad: Any = harness.in_float64(poison(partial(_poisoned, values=values)))
        rows = harness.without_nan(report.rows(bad))
        json.dumps(rows, allow_nan=False)
        table = report.table(rows)
        assert "nan" not in table.replace("nan_", "") and "inf" not in table, table
        told = {row["metric"] for row in rows if row["mean"] is not None}
        for figure in report.figures(bad).values() if len(values) > 1 else ():
            figure.set_layout_engine("none")  # it takes half of the time
            reporting.draw(figure, io.BytesIO(), dpi=20)
            plt.close(figure)
    return told
