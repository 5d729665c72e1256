"""Report of the benchmark of gradient quality: rows of the JSON file, and the table."""

import json
from collections.abc import Mapping, Sequence
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
    "snr_draws": "SNR, draws",
    "snr_examples": "SNR, examples",
    "snr_examples_tutorial": "SNR, tutorial",
    "flops": "MFLOP",
}


def axis_of(sweep: xr.Dataset) -> str:
    """Returns the name of the setting that a sweep varies."""
    (axis,) = (str(dim) for dim in sweep.dims if dim not in ("rule", "seed", "layer"))
    return axis


def rows(sweep: xr.Dataset) -> list[dict[str, Any]]:
    """Returns a row per value, rule and layer, with mean and 95 % interval over seeds of every metric.

    `standard_error` is the standard error over draws of the mean over seeds; `theory` is a mean over seeds.
    Undefined values are omitted, and numbers have four digits.
    """
    axis, found = axis_of(sweep), []
    for value in sweep[axis].values:
        for rule in sweep.rule.values:
            for layer in sweep.layer.values:
                point = sweep.sel({"rule": rule, axis: value, "layer": layer})
                metrics = {metric: _numbers(point, metric) for metric in METRICS}
                plain = value.item() if isinstance(value, np.generic) else value
                where = {"sweep": axis, "value": plain, "rule": str(rule), "layer": str(layer)}
                if any(metrics.values()):
                    found.append({**where, "metrics": {k: v for k, v in metrics.items() if v}})
    return found


def _numbers(point: xr.Dataset, metric: str) -> dict[str, Any]:
    mean, low, high, _ = reporting.interval(point[metric].values)
    errors = point[f"{metric}_error"].values
    of_mean = float(np.sqrt(np.sum(np.square(errors))) / errors.size)
    numbers = {"mean": mean, "low": low, "high": high, "standard_error": of_mean}
    if f"theory_{metric}" in point:
        numbers["theory"] = float(point[f"theory_{metric}"].mean(skipna=False))
    return {name: float(f"{number:.4g}") for name, number in numbers.items() if np.isfinite(number)}


def as_json(head: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats a JSON object of the entries of `head` and `rows`, with one row per line."""
    start = json.dumps(dict(head), indent=1).removesuffix("\n}")
    lines = ",\n".join(json.dumps(row) for row in rows)
    return f'{start},\n "rows": [\n{lines}\n ]\n}}\n'


def table(baseline: xr.Dataset, flops: Mapping[str, float]) -> str:
    """Formats the table of all rules at the default setting, in total, as mean ± standard error over draws.

    For the SNR across examples, the error is half the 95 % interval over seeds.
    """
    lines = []
    totals = {row["rule"]: row["metrics"] for row in rows(baseline) if row["layer"] == "total"}
    for rule in map(str, baseline.rule.values):
        metrics = totals.get(rule, {})  # empty for a rule that diverged
        texts = {metric: _with_error(numbers) for metric, numbers in metrics.items()}
        theory = metrics.get("relative_variance", {}).get("theory")
        texts["theory"] = "-" if theory is None else f"{theory:.3g}"
        texts["flops"] = f"{flops[rule] / 1e6:.3g}"
        lines.append([rule.replace("_", " "), *(texts.get(column, "-") for column in COLUMNS)])
    return reporting.table(["rule", *COLUMNS.values()], lines)


def _with_error(numbers: Mapping[str, float]) -> str:
    if "mean" not in numbers:
        return "-"
    error = numbers.get("standard_error")
    if error is None and "low" in numbers:
        error = (numbers["high"] - numbers["low"]) / 2
    return f"{numbers['mean']:.3g}" if error is None else f"{numbers['mean']:.3g} ± {error:.1g}"
