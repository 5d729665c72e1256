"""Report of the comparison of rules: rows of summary.json, one table per problem, and figures."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

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
    """Returns test accuracies by seed after the time of a backprop run, or at the end for a faster rule."""
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
        for name, when, layer in itertools.product(BY_LAYER, ("start", "end"), map(str, part.layer.values)):
            of_layer = f": {layer}" if layer != "total" else ""
            metrics[f"{name} {when}{of_layer}"] = part[name].sel(when=when, layer=layer).values
        found += [{**named, **row} for row in reporting.summary_rows(named["rule"], metrics) if row["n"]]
        is_end = float(part.learning_rate) in part.rate.values[[0, -1]]
        found.append({**named, "metric": "at an end of the rates", "value": is_end})
    return found


def table(summary: list[dict[str, Any]]) -> str:
    """Formats one table per problem, followed by the rules that do not support its model."""
    header = ("rule", "learning rate", *COLUMNS.values(), "time / backprop's")
    lines, refused = defaultdict[str, list[list[str]]](list), defaultdict[str, dict[str, list[str]]](dict)
    for (problem, rule), metrics in reporting.by_part(summary, "problem", "rule").items():
        if "refused" in metrics:
            refused[problem].setdefault(metrics["refused"]["message"], []).append(rule)
            continue
        at_end = metrics["at an end of the rates"]["value"]
        rate = f"{metrics['learning rate']['mean']:.3g}" + (" (end)" if at_end else "")
        cells = [reporting.cell(metrics[name]) if name in metrics else "-" for name in COLUMNS]
        times = f"{metrics['relative seconds']['mean']:.2f}"
        lines[problem].append([name_of(rule), rate, *cells, times])
    texts = []
    for problem in dict.fromkeys(row["problem"] for row in summary):
        below = [f"Refused: {', '.join(rules)}: {message}" for message, rules in refused[problem].items()]
        texts += [problem, reporting.table(header, lines[problem]), *below]
    return "\n\n".join(texts)


def figures(results: xr.Dataset) -> dict[str, Figure]:
    """Draws learning curves of every problem, and cosine and signal to noise by layer."""
    learnt = defaultdict[str, list[xr.Dataset]](list)
    for part in parts_of(results):
        if not part.refused.item():
            learnt[str(part.problem.item())].append(part)
    drawn = {}
    for problem, parts in learnt.items():
        drawn[f"{problem}_curves"] = curves(problem, parts)
        for name, label in BY_LAYER.items():
            drawn[f"{problem}_{name}"] = layers(problem, parts, name, label)
    return drawn


IN_A_PANEL = 9
"""Maximum number of rules per panel of curves."""


def name_of(rule: Any) -> str:
    """Returns the name of a rule as it is written in tables and figures."""
    return str(rule).replace("_", " ")


def curves(problem: str, parts: Sequence[xr.Dataset]) -> Figure:
    """Draws test accuracy against updates and seconds, with nine rules per column; backprop is dashed."""
    groups = [parts[i : i + IN_A_PANEL] for i in range(0, len(parts), IN_A_PANEL)]
    size = 4.2 * len(groups), 9
    drawn, grid = plt.subplots(2, len(groups), figsize=size, sharey=True, squeeze=False)
    of_backprop = float(np.median([part.backprop_seconds for part in parts]))
    exact = [part for part in parts if part.rule == "backprop"]
    for (above, below), group in zip(grid.T, groups, strict=True):
        for part in [*exact, *(part for part in group if part.rule != "backprop")]:
            style: dict[str, Any] = {"label": name_of(part.rule.item())}
            style |= {"color": "0.3", "linestyle": "--"} if part.rule == "backprop" else {}
            seconds = of_backprop * float(part.relative_seconds)
            reporting.band(above, part.step.values, part.test_accuracy.values, **style)
            reporting.band(below, part.step.values * seconds, part.test_accuracy.values, **style)
        above.set_xlabel("updates")
        below.set_xlabel("seconds (one seed, without compilation)")
        below.set_xlim(0, 1.5 * of_backprop * float(parts[0].step[-1]))
        below.legend(
            frameon=False, fontsize="x-small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15)
        )
    for axes in grid[:, 0]:
        axes.set_ylabel("test accuracy")
    title = f"{problem}: every rule at its own best learning rate"
    return reporting.completed(drawn, parts[0], title, "; dashed: backprop")


def layers(problem: str, parts: Sequence[xr.Dataset], metric: str, label: str) -> Figure:
    """Draws a metric of every layer, and in total, before (light) and after training (dark), by rule."""
    names = [str(layer) for layer in parts[0][metric].dropna("layer", how="all").layer.values]
    size = 3 + 1.9 * len(names), 1.5 + 0.24 * len(parts)
    drawn, grid = plt.subplots(1, len(names), figsize=size, sharey=True, squeeze=False)
    places = np.arange(len(parts))[::-1]
    for axes, layer in zip(grid[0], names, strict=True):
        for when, color, shift in (("start", "tab:cyan", 0.2), ("end", "tab:blue", -0.2)):
            values = [part[metric].sel(layer=layer, when=when).values for part in parts]
            mean, low, high, _ = np.array([reporting.interval(reporting.drawable(v)) for v in values]).T
            style = {"color": color, "height": 0.4, "error_kw": {"linewidth": 0.8}}
            spread = [mean - low, high - mean]
            axes.barh(places + shift, mean, xerr=spread, label=f"{when} of training", **style)
        axes.set(title=layer if layer == "total" else f"layer {layer}", xlabel=metric)
        axes.grid(alpha=0.3, axis="x")
        axes.axvline(0, color="0.5", linewidth=0.8)
        axes.set_ylim(-0.7, len(parts) - 0.3)
        if metric == "cosine":
            axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        if metric == "snr":
            axes.set_xscale("symlog", linthresh=1e-3)
            axes.set_xticks([-1e-2, 0, 1e-2, 1], ["-0.01", "0", "0.01", "1"])
    grid[0, 0].set_yticks(places, [name_of(part.rule.item()) for part in parts])
    reporting.legend_beside(drawn, grid[0, 0])
    return reporting.completed(drawn, parts[0], f"{problem}: {label} by layer", grid=())
