"""Report of the comparison of rules: rows of summary.json, one table per problem, and figures."""

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
            drawn[f"{problem}_curves"] = curves(problem, learnt)
            for name, label in BY_LAYER.items():
                drawn[f"{problem}_{name}"] = layers(problem, learnt, name, label)
    return drawn


IN_A_PANEL = 9
"""Maximum number of rules per panel of curves."""


def name_of(part: xr.Dataset) -> str:
    """Returns the rule of a part as it is written in figures."""
    return str(part.rule.item()).replace("_", " ")


def curves(problem: str, parts: Sequence[xr.Dataset]) -> Figure:
    """Draws test accuracy against updates and seconds, with nine rules per column; backprop is dashed."""
    groups = [parts[i : i + IN_A_PANEL] for i in range(0, len(parts), IN_A_PANEL)]
    drawn, grid = plt.subplots(
        2, len(groups), figsize=(4.2 * len(groups), 9), layout="constrained", sharey=True, squeeze=False
    )
    of_backprop = float(np.median([part.backprop_seconds for part in parts]))
    exact = [part for part in parts if name_of(part) == "backprop"]
    for column, group in zip(grid.T, groups, strict=True):
        others = [part for part in group if name_of(part) != "backprop"]
        for axes, unit in zip(column, (None, of_backprop), strict=True):
            for part in [*exact, *others]:
                x = part.step.values * (1 if unit is None else unit * float(part.relative_seconds))
                style = {"color": "0.3", "linestyle": "--"} if any(part is one for one in exact) else {}
                reporting.band(axes, x, part.test_accuracy.values, label=name_of(part), **style)
            axes.grid(alpha=0.3)
            axes.set_xlabel("updates" if unit is None else "seconds (one seed, without compilation)")
        column[1].set_xlim(0, 1.5 * of_backprop * float(parts[0].step[-1]))
        column[1].legend(
            frameon=False, fontsize="x-small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15)
        )
    for axes in grid[:, 0]:
        axes.set_ylabel("test accuracy")
    drawn.suptitle(f"{problem}: every rule at its own best learning rate", fontsize="large")
    reporting.note_seeds(drawn, parts[0], "; dashed: backprop")
    return drawn


def layers(problem: str, parts: Sequence[xr.Dataset], metric: str, label: str) -> Figure:
    """Draws a metric of every layer, and in total, before (light) and after training (dark), by rule."""
    names = [str(layer) for layer in parts[0][metric].dropna("layer", how="all").layer.values]
    drawn, grid = plt.subplots(
        1, len(names), figsize=(3 + 1.9 * len(names), 1.5 + 0.24 * len(parts)),
        layout="constrained", sharey=True, squeeze=False,
    )  # fmt: skip
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
    grid[0, 0].set_yticks(places, [name_of(part) for part in parts])
    reporting.legend_beside(drawn, grid[0, 0])
    drawn.suptitle(f"{problem}: {label} by layer", fontsize="large")
    reporting.note_seeds(drawn, parts[0])
    return drawn
