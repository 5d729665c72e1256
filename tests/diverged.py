"""Results of runs that diverged, and that a report tells of them what is finite and no more."""

import io
import json
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

from experiments import harness, reporting

POISONS = {"nan": np.nan, "inf": np.inf, "large": 3e38}


def poisoned(dataset: xr.Dataset, value: float, seeds: slice) -> xr.Dataset:
    """A dataset whose floats over these seeds have become `value`; what is a constant of the run stays."""
    changed = {}
    for name, variable in dataset.data_vars.items():
        if variable.dtype.kind == "f" and "seed" in variable.dims:
            changed[name] = variable.copy(deep=True)
            changed[name][{"seed": seeds}] = value
    return dataset.assign(changed)


def check_report(report: Any, results: xr.Dataset | xr.DataTree) -> list[dict[str, Any]]:
    """Makes rows, table and figures of poisoned results; returns the rows where everything is NaN."""
    of_all = []
    for how, value in POISONS.items():
        for seeds in (slice(None), slice(0, 1)):
            if isinstance(results, xr.DataTree):
                groups = {name: node.to_dataset() for name, node in results.children.items()}
                bad: Any = xr.DataTree.from_dict({n: poisoned(d, value, seeds) for n, d in groups.items()})
                bad.attrs = results.attrs
            else:
                bad = poisoned(results, value, seeds)
            bad = harness.in_float64(bad)
            rows = harness.without_nan(report.rows(bad))
            json.dumps(rows, allow_nan=False)
            table = report.table(rows)
            assert "nan" not in table.replace("nan_", "") and "inf" not in table, table
            for figure in report.figures(bad).values():
                reporting.draw(figure, io.BytesIO(), dpi=20)
                plt.close(figure)
            if how == "nan" and seeds == slice(None):
                of_all = rows
    return of_all
