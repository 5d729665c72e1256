"""What the benchmark of gradient quality tells in words and numbers: rows of its JSON, and the table."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from benchmarks.quality.measures import METRICS
from experiments import reporting

COLUMNS = {
    "cosine": "cosine",
    "angle_degrees": "angle (deg)",
    "relative_bias": "bias² / |g|²",
    "relative_variance": "variance / |g|²",
    "theory": "variance, theory",
    "snr": "SNR",
    "snr_tutorial": "SNR (tutorial)",
    "flops": "MFLOP",
}


def axis_of(sweep: xr.Dataset) -> str:
    """The name of what a sweep varies."""
    (axis,) = (str(dim) for dim in sweep.dims if dim not in ("rule", "seed", "layer"))
    return axis


def rows(sweep: xr.Dataset) -> list[dict[str, Any]]:
    """The rows of a sweep: mean and 95 % interval over seeds for every value, rule, layer and metric.

    `standard_error` is that over draws, of the mean over seeds; None where there is none. `theory` is the
    mean over seeds of what theory says, None where it says nothing.
    """
    axis, found = axis_of(sweep), []
    for rule in sweep.rule.values:
        for value in sweep[axis].values:
            for layer in sweep.layer.values:
                point = sweep.sel({"rule": rule, axis: value, "layer": layer})
                for metric in METRICS:
                    (row,) = reporting.summary_rows(str(rule), {metric: point[metric].values})
                    if row["n"]:
                        where = {"sweep": axis, "value": _plain(value), "layer": str(layer)}
                        found.append({**where, **row, **_beside(point, metric)})
    return found


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _beside(point: xr.Dataset, metric: str) -> dict[str, float | None]:
    error = theory = None
    if f"{metric}_error" in point:
        errors = point[f"{metric}_error"].values
        error = float(np.sqrt(np.sum(np.square(errors))) / errors.size)
    if f"theory_{metric}" in point and np.isfinite(point[f"theory_{metric}"].values).all():
        theory = float(point[f"theory_{metric}"].mean())
    return {"standard_error": error, "theory": theory}


def table(baseline: xr.Dataset, flops: Mapping[str, float]) -> str:
    """The printed table: every rule at the default setting, all layers together, mean ± standard error.

    The error is that over draws, and for the SNR half the width of the 95 % interval over seeds.
    """
    lines = []
    found = [row for row in rows(baseline) if row["layer"] == "total"]
    for rule, of_rule in flops.items():
        cells = {row["metric"]: row for row in found if row["rule"] == rule}
        texts = {metric: _with_error(row) for metric, row in cells.items()}
        theory = cells["relative_variance"]["theory"]
        texts["theory"] = "-" if theory is None else f"{theory:.3g}"
        texts["flops"] = f"{of_rule / 1e6:.3g}"
        lines.append([rule.replace("_", " "), *(texts[c] for c in COLUMNS)])
    return reporting.table(["rule", *COLUMNS.values()], lines)


def _with_error(row: dict[str, Any]) -> str:
    mean, (low, high) = row["mean"], row["ci95"]
    error = row["standard_error"]
    if error is None and low is not None:
        error = (high - low) / 2
    return f"{mean:.3g}" if error is None else f"{mean:.3g} ± {error:.1g}"
