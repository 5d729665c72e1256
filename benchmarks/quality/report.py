"""Report of the benchmark of gradient quality: rows of the JSON file, and the table."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.quality.measures import METRICS
from experiments import reporting

Measured = dict[str, np.ndarray]
"""Metrics of a rule at a setting, with their standard errors and theory, `[seed, layers + 1]`."""

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


def rows_of(sweep: str, value: Any, rule: str, measured: Measured) -> list[dict[str, Any]]:
    """Returns a row per layer and in total, with mean and 95 % interval over seeds of every metric.

    `standard_error` is the standard error over draws of the mean over seeds; `theory` is a mean over seeds.
    Undefined values are omitted, and numbers have four digits.
    """
    depth = measured["cosine"].shape[1] - 1
    rows = []
    for i, layer in enumerate([*map(str, range(1, depth + 1)), "total"]):
        metrics = {metric: _numbers(measured, metric, i) for metric in METRICS}
        where = {"sweep": sweep, "value": value, "rule": rule, "layer": layer}
        rows.append({**where, "metrics": {metric: numbers for metric, numbers in metrics.items() if numbers}})
    return rows


def _numbers(measured: Measured, metric: str, layer: int) -> dict[str, float]:
    mean, low, high, _ = reporting.interval(measured[metric][:, layer])
    errors = measured[f"{metric}_error"][:, layer]
    of_mean = float(np.sqrt(np.sum(np.square(errors))) / errors.size)
    numbers = {"mean": mean, "low": low, "high": high, "standard_error": of_mean}
    if f"theory_{metric}" in measured:
        numbers["theory"] = float(measured[f"theory_{metric}"][:, layer].mean())
    return {name: float(f"{number:.4g}") for name, number in numbers.items() if np.isfinite(number)}


def as_json(head: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats a JSON object of the entries of `head` and the rows with metrics, one row per line."""
    start = json.dumps(dict(head), indent=1).removesuffix("\n}")
    lines = ",\n".join(json.dumps(row) for row in rows if row["metrics"])
    return f'{start},\n "rows": [\n{lines}\n ]\n}}\n'


def table(rows: Sequence[Mapping[str, Any]], flops: Mapping[str, float]) -> str:
    """Formats the rows in total of all rules at one setting, as mean ± standard error over draws.

    For the SNR across examples, the error is half the 95 % interval over seeds.
    """
    lines = []
    for row in rows:
        metrics = row["metrics"]  # empty for a rule that diverged
        texts = {metric: _with_error(numbers) for metric, numbers in metrics.items()}
        theory = metrics.get("relative_variance", {}).get("theory")
        texts["theory"] = "-" if theory is None else f"{theory:.3g}"
        texts["flops"] = f"{flops[row['rule']] / 1e6:.3g}"
        lines.append([row["rule"].replace("_", " "), *(texts.get(column, "-") for column in COLUMNS)])
    return reporting.table(["rule", *COLUMNS.values()], lines)


def _with_error(numbers: Mapping[str, float]) -> str:
    if "mean" not in numbers:
        return "-"
    error = numbers.get("standard_error")
    if error is None and "low" in numbers:
        error = (numbers["high"] - numbers["low"]) / 2
    return f"{numbers['mean']:.3g}" if error is None else f"{numbers['mean']:.3g} ± {error:.1g}"
