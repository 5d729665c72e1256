"""Report of the comparison of rules: rows of summary.json, one table per problem, and figures."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from benchmarks.rules import figures as drawings
from experiments import reporting

VARIABLES = {
    "test_accuracy": ("1", "fraction of test examples classified correctly"),
    "tuning_accuracy": ("1", "fraction of validation examples classified correctly after a trial"),
    "cosine": ("1", "cosine of the update to that of backprop, mean over batches"),
    "snr": ("1", "signal to noise of the update over batches and draws, debiased"),
    "relative_seconds": ("1", "time of an update relative to backprop, median of pairs"),
    "refused": ("", "error message of a rule that does not support the model"),
    "machine_load": ("1", "load of the machine at the end of the part"),
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
    """Returns a list of the parts of the results."""
    return [results.isel(part=i) for i in range(results.sizes["part"])]


def at_equal_seconds(part: xr.Dataset) -> np.ndarray:
    """Returns test accuracies by seed after the time of a backprop run, or after the run of a faster rule."""
    last = float(part.step[-1])
    reached = min(last, last / float(part.relative_seconds))
    return np.array([np.interp(reached, part.step, curve) for curve in part.test_accuracy.values])


def rows(results: xr.Dataset) -> list[dict[str, Any]]:
    """Returns mean and 95 % interval over seeds of every metric, by problem and rule, and error messages."""
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
        found += [{**named, **row} for row in reporting.summary_rows(named["rule"], metrics) if row["n"]]
        is_end = float(part.learning_rate) in part.rate.values[[0, -1]]
        found.append({**named, "metric": "at an end of the rates", "value": is_end})
    return found


def table(summary: list[dict[str, Any]]) -> str:
    """Formats one table per problem, followed by the rules that do not support its model."""
    found = reporting.by_part(summary, "problem", "rule")
    header = ("rule", "learning rate", *COLUMNS.values(), "time / backprop's")
    texts = []
    for problem in dict.fromkeys(row["problem"] for row in summary):
        mine = {rule: metrics for (of, rule), metrics in found.items() if of == problem}
        lines, refused = list[list[str]](), dict[str, list[str]]()
        for rule, metrics in mine.items():
            if "refused" in metrics:
                refused.setdefault(metrics["refused"]["message"], []).append(rule)
                continue
            at_end = metrics["at an end of the rates"]["value"]
            rate = f"{metrics['learning rate']['mean']:.3g}" + (" (end)" if at_end else "")
            cells = [reporting.cell(metrics[name]) if name in metrics else "-" for name in COLUMNS]
            times = f"{metrics['relative seconds']['mean']:.2f}"
            lines.append([rule.replace("_", " "), rate, *cells, times])
        below = [f"Refused: {', '.join(rules)}: {message}" for message, rules in refused.items()]
        texts += [problem, reporting.table(header, lines), *below]
    return "\n\n".join(texts)


def figures(results: xr.Dataset) -> dict[str, Figure]:
    """Draws learning curves of every problem, and cosine and signal to noise by layer."""
    drawn = {}
    for problem in dict.fromkeys(map(str, results.problem.values)):
        learnt = [p for p in parts_of(results) if str(p.problem.item()) == problem and not p.refused.item()]
        if learnt:
            drawn[f"{problem}_curves"] = drawings.curves(problem, learnt)
            for name, label in BY_LAYER.items():
                drawn[f"{problem}_{name}"] = drawings.layers(problem, learnt, name, label)
    return drawn
