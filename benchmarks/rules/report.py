"""Report of the benchmark of rules: rows of summary.json, one table a problem, and figures."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from benchmarks.rules import figures as drawings
from experiments import reporting

VARIABLES = {
    "test_accuracy": ("1", "share of test examples that are classified correctly"),
    "tuning_accuracy": (
        "1",
        "share of validation examples that are classified correctly, at the end of a trial",
    ),
    "cosine": ("1", "cosine of the update to backprop's, mean over batches"),
    "snr": ("1", "signal to noise of the update over batches and draws, debiased"),
    "relative_seconds": ("1", "time of an update over that of backprop's, median of pairs"),
    "refused": ("", "message of a rule that the model refuses"),
    "machine_load": ("1", "load of the machine when the part was done"),
}
COLUMNS = {
    "equal updates": "accuracy",
    "equal seconds": "at backprop's seconds",
    "cosine start": "cosine, start",
    "cosine end": "end",
    "snr start": "SNR, start",
    "snr end": "end",
}

BY_LAYER = {"cosine": "cosine to backprop's update", "snr": "signal to noise of an update"}


def parts_of(results: xr.Dataset) -> list[xr.Dataset]:
    """The parts of the results one by one, with the layers that each has."""
    return [results.isel(part=i) for i in range(results.sizes["part"])]


def at_equal_seconds(part: xr.Dataset) -> np.ndarray:
    """Test accuracy of every seed when backprop has done its run; of a faster rule that of its own run."""
    last = float(part.step[-1])
    reached = min(last, last / float(part.relative_seconds))
    return np.array([np.interp(reached, part.step, curve) for curve in part.test_accuracy.values])


def rows(results: xr.Dataset) -> list[dict[str, Any]]:
    """Mean and 95 % interval over seeds of every metric, by problem and rule; refusals with their message."""
    found: list[dict[str, Any]] = []
    for part in parts_of(results):
        named = {"problem": str(part.problem.item()), "rule": str(part.rule.item())}
        if part.refused.item():
            found.append({**named, "metric": "refused", "message": str(part.refused.item())})
            continue
        metrics = {
            "equal updates": part.test_accuracy.values[:, -1],
            "equal seconds": at_equal_seconds(part),
            "learning rate": part.learning_rate.values,
            "relative seconds": part.relative_seconds.values,
            "seconds": part.seconds.values,
        }
        for name in BY_LAYER:
            for when in ("start", "end"):
                of_layers = part[name].sel(when=when)
                for layer in map(str, part.layer.values):
                    values = of_layers.sel(layer=layer).values
                    metrics[f"{name} {when}" + (f": {layer}" if layer != "total" else "")] = values
        for row in reporting.summary_rows(named["rule"], metrics):
            if row["n"]:
                found.append({**named, **row})
        ends = part.rate.values[[0, -1]]
        is_end = float(part.learning_rate) in ends
        found.append({**named, "metric": "at an end of the rates", "value": is_end})
    return found


def table(summary: list[dict[str, Any]]) -> str:
    """One table for every problem, and the refusals below it."""
    found = reporting.by_part(summary, "problem", "rule")
    header = ("rule", "learning rate", *COLUMNS.values(), "time / backprop's")
    texts = []
    for problem in dict.fromkeys(row["problem"] for row in summary):
        mine = {rule: metrics for (of, rule), metrics in found.items() if of == problem}
        lines = [_line(rule, metrics) for rule, metrics in mine.items() if "refused" not in metrics]
        refused: dict[str, list[str]] = {}
        for rule, metrics in mine.items():
            if "refused" in metrics:
                refused.setdefault(metrics["refused"]["message"], []).append(rule)
        below = [f"Refused: {', '.join(rules)}: {message}" for message, rules in refused.items()]
        texts += [problem, reporting.table(header, lines), *below]
    return "\n\n".join(texts)


def _line(rule: str, metrics: Mapping[str, Any]) -> list[str]:
    at_end = metrics["at an end of the rates"]["value"]
    rate = f"{metrics['learning rate']['mean']:.3g}" + (" (end)" if at_end else "")
    cells = [reporting.cell(metrics[name]) if name in metrics else "-" for name in COLUMNS]
    return [rule.replace("_", " "), rate, *cells, f"{metrics['relative seconds']['mean']:.2f}"]


def figures(results: xr.Dataset) -> dict[str, Figure]:
    """Learning curves of every problem, and cosine and signal to noise by layer."""
    drawn = {}
    for problem in dict.fromkeys(map(str, results.problem.values)):
        learnt = [p for p in parts_of(results) if str(p.problem.item()) == problem and not p.refused.item()]
        if learnt:
            drawn[f"{problem}_curves"] = drawings.curves(problem, learnt)
            drawn[f"{problem}_cosine"] = drawings.layers(
                problem, learnt, "cosine", "cosine to backprop's update"
            )
            drawn[f"{problem}_snr"] = drawings.layers(problem, learnt, "snr", "signal to noise of an update")
    return drawn
