"""The results, the table and the figures of a sweep."""

import json
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import optuna
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState

from experiments import reporting
from experiments.sweep.space import Space
from experiments.sweep.study import summary
from experiments.sweep.workers import finished
from experiments.sweeping import Sweepable

SHOWN = 10
PRUNED = {"marker": "x", "color": "0.6", "s": 18, "linewidths": 0.8, "label": "stopped early"}


def as_dataset(study: optuna.Study, space: Space, sweepable: Sweepable) -> xr.Dataset:
    """All finished trials with named axes, in the order of their numbers."""
    trials = finished(study)
    complete = [trial.state == TrialState.COMPLETE for trial in trials]
    seeds = max(len(trial.user_attrs.get("scores", [])) for trial in trials)
    nothing = [float("nan")] * seeds
    scores = np.array([trial.user_attrs.get("scores", nothing) for trial in trials])
    medians, low, high = np.array([summary(of_trial) for of_trial in scores]).T
    variables: dict[str, Any] = {
        "score": (("trial", "seed"), scores),
        "median": ("trial", np.where(complete, medians, np.nan)),
        "low": ("trial", low),
        "high": ("trial", high),
        "complete": ("trial", complete),
        "importance": ("parameter", importances(study, list(space.searched))),
        **{name: ("trial", [trial.params[name] for trial in trials]) for name in space.searched},
    }
    coordinates = {
        "trial": [trial.number for trial in trials],
        "seed": np.arange(seeds),
        "parameter": list(space.searched),
    }
    attributes = {
        "objective": sweepable.objective,
        "direction": sweepable.direction,
        "fixed": json.dumps(space.fixed),
        "logarithmic": json.dumps([n for n, d in space.searched.items() if getattr(d, "log", False)]),
    }
    return xr.Dataset(variables, coordinates, attributes)


def importances(study: optuna.Study, names: list[str]) -> np.ndarray:
    """Share of the variance that each hyper-parameter explains by functional ANOVA; NaN if none is there."""
    values = {trial.value for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))}
    if len(values) < 2:
        return np.full(len(names), np.nan)
    found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return np.array([found.get(name, np.nan) for name in names])


def best_first(results: xr.Dataset) -> np.ndarray:
    """Places of the completed trials, the best first."""
    places = np.flatnonzero(results.complete.values)
    sign = -1 if results.direction == "maximize" else 1
    return places[np.argsort(sign * results["median"].values[places], kind="stable")]


def rows(results: xr.Dataset) -> list[dict[str, Any]]:
    """The rows of `summary.json`: the best trials, how many there are, and what decides."""
    names, order = [str(n) for n in results.parameter.values], best_first(results)
    summary: list[dict[str, Any]] = [
        {"trials": results.sizes["trial"], "completed": len(order), "objective": results.objective}
    ]
    for place in order[:SHOWN]:
        one = results.isel(trial=place)
        summary.append({
            "trial": int(one.trial), "median": float(one["median"]),
            "ci95": [float(one.low), float(one.high)], "n": results.sizes["seed"],
            **{name: one[name].item() for name in names},
        })  # fmt: skip
    shares = zip(names, results.importance.values, strict=True)
    return [*summary, *({"parameter": n, "importance": None if np.isnan(v) else float(v)} for n, v in shares)]


def table(summary: list[dict[str, Any]]) -> str:
    """The printed table: the best trials, with the interval over seeds."""
    head, best = summary[0], [row for row in summary if "trial" in row]
    lines = []
    for row in best:
        low, high = ("-" if end is None else f"{end:.4g}" for end in row["ci95"])
        values = [v for name, v in row.items() if name not in ("trial", "median", "ci95", "n")]
        cells = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in values]
        lines.append([str(row["trial"]), f"{row['median']:.4g}", f"{low} .. {high}", *cells])
    count = f"{head['trials']} trials, {head['trials'] - head['completed']} of them stopped early"
    if not best:
        return count
    names = [name for name in best[0] if name not in ("trial", "median", "ci95", "n")]
    title = f"{head['objective']}: median over {best[0]['n']} seeds and interval; {count}"
    return f"{title}\n\n" + reporting.table(["trial", "median", "interval", *names], lines)


def figures(results: xr.Dataset) -> dict[str, Figure]:
    """Draws all figures; with no completed trial there is nothing to draw."""
    if not results.complete.any():
        return {}
    drawn = (history, importance, parallel_coordinates, slices)
    return {draw.__name__: draw(results) for draw in drawn}


def _stopped_at(results: xr.Dataset) -> np.ndarray:
    """The last median of trials that were stopped early."""
    return reporting.drawable(np.median(results.score.values, axis=1))


def _limit(axes: Axes, results: xr.Dataset) -> None:
    """Limits the axis of scores to those of completed trials, which a few that diverged would hide."""
    ends = (2, 100) if results.direction == "maximize" else (0, 98)
    shown = reporting.drawable(results["median"].values)
    if np.isfinite(shown).any():
        axes.set_ylim(reporting.limits(np.nanpercentile(shown, ends), 0.08))


def _footnote(figure: Figure, results: xr.Dataset) -> None:
    stopped = int((~results.complete).sum())
    sizes = f"{results.sizes['trial']} trials, {stopped} stopped early"
    reporting.footnote(figure, f"{sizes}; median over {results.sizes['seed']} seeds")


def history(results: xr.Dataset) -> Figure:
    """Scores in the order of the trials, with their intervals, and the best so far."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    done, number = results.complete.values, results.trial.values
    median, low, high = (reporting.drawable(results[name].values[done]) for name in ("median", "low", "high"))
    axes.errorbar(
        number[done], median, [median - low, high - median], fmt="o", markersize=3, linewidth=0.7, alpha=0.6,
        label="median and 95 % interval over seeds",
    )  # fmt: skip
    axes.scatter(number[~done], _stopped_at(results)[~done], **PRUNED)
    best = (np.maximum if results.direction == "maximize" else np.minimum).accumulate(median)
    axes.step(number[done], best, where="post", color="tab:red", label="best so far")
    axes.set(title="Trials in their order", xlabel="trial", ylabel=results.objective)
    _limit(axes, results)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    _footnote(figure, results)
    return figure


def importance(results: xr.Dataset) -> Figure:
    """Importance of hyper-parameters: shares of the variance of the completed trials."""
    shares = results.importance.sortby(results.importance)
    names = [str(name) for name in shares.parameter.values]
    figure, axes = plt.subplots(figsize=(8, 1.6 + 0.5 * len(names)), layout="constrained")
    bars = axes.barh(names, shares.values)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set(
        title=f"What decides: {results.objective}", xlabel="share of the variance (functional ANOVA)",
        xlim=(0, 1.1),
    )  # fmt: skip
    axes.grid(axis="x", alpha=0.3)
    _footnote(figure, results)
    return figure


def _places(results: xr.Dataset, name: str) -> tuple[np.ndarray, list[str] | None]:
    """Positions of the values of a hyper-parameter on an axis, and the labels if they are texts."""
    values = results[name].values
    if values.dtype.kind in "fi":
        return values.astype(float), None
    labels = sorted(set(values.tolist()))
    return np.array([labels.index(value) for value in values], float), labels


def parallel_coordinates(results: xr.Dataset) -> Figure:
    """One line a completed trial through its hyper-parameters to its score, the best on top."""
    names = [str(name) for name in results.parameter.values]
    logarithmic, order = json.loads(results.logarithmic), best_first(results)[::-1]
    figure, axes = plt.subplots(figsize=(3 + 2.2 * len(names), 5.5), layout="constrained")
    score = reporting.drawable(results["median"].values)
    order = order[np.isfinite(score[order])]
    columns, ticks = [], []
    for name in names:
        values, labels = _places(results, name)
        low, high = values.min(), values.max()
        scale = np.log10 if name in logarithmic else np.asarray
        marks = np.geomspace(low, high, 5) if name in logarithmic else np.linspace(low, high, 5)
        marks = np.arange(len(labels), dtype=float) if labels else marks
        span = scale(high) - scale(low) or 1.0
        columns.append((scale(values) - scale(low)) / span)
        texts = [labels[int(mark)] if labels else f"{mark:.2g}" for mark in marks]
        ticks.append(list(zip((scale(marks) - scale(low)) / span, texts, strict=True)))
    shown = score[order]
    ends = (10, 100) if results.direction == "maximize" else (0, 90)
    bounds = np.percentile(shown, ends) if shown.size else (0.0, 1.0)
    colours = plt.get_cmap("viridis" if results.direction == "maximize" else "viridis_r")
    norm = plt.Normalize(float(bounds[0]), float(bounds[1]))  # pyright: ignore[reportPrivateImportUsage]
    for place in order:
        heights = [column[place] for column in columns]
        axes.plot(range(len(names)), heights, color=colours(norm(score[place])), linewidth=0.9, alpha=0.7)
    for i, of_axis in enumerate(ticks):
        axes.axvline(i, color="0.3", linewidth=1)
        for height, label in of_axis:
            axes.annotate(
                label, (i, height), xytext=(4, 0), textcoords="offset points", fontsize="small", va="center",
                bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
            )  # fmt: skip
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks([])
    axes.set(title="Hyper-parameters of the completed trials", xlim=(-0.1, len(names) - 0.6))
    mappable = plt.cm.ScalarMappable(norm, colours)
    extend = "min" if results.direction == "maximize" else "max"
    figure.colorbar(mappable, ax=axes, label=results.objective, extend=extend)
    _footnote(figure, results)
    return figure


def slices(results: xr.Dataset) -> Figure:
    """Scores against each hyper-parameter."""
    names = [str(name) for name in results.parameter.values]
    figure, every = plt.subplots(
        1, len(names), figsize=(1 + 4 * len(names), 4.4), sharey=True, layout="constrained", squeeze=False
    )
    done = results.complete.values
    norm = plt.Normalize(*results.trial.values[[0, -1]])  # pyright: ignore[reportPrivateImportUsage]
    for axes, name in zip(every[0], names, strict=True):
        values, labels = _places(results, name)
        axes.scatter(
            values[done], reporting.drawable(results["median"].values[done]), c=results.trial.values[done],
            s=16, norm=norm, label="completed",
        )  # fmt: skip
        axes.scatter(values[~done], _stopped_at(results)[~done], **PRUNED)
        if labels:
            axes.set_xticks(range(len(labels)), labels, rotation=20, ha="right")
        elif name in json.loads(results.logarithmic):
            axes.set_xscale("log")
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
    _limit(every[0, 0], results)
    every[0, 0].set_ylabel(results.objective)
    every[0, 0].legend(frameon=False, fontsize="small")
    figure.colorbar(plt.cm.ScalarMappable(norm, "viridis"), ax=every[0, -1], label="trial")
    figure.suptitle("Scores against each hyper-parameter")
    _footnote(figure, results)
    return figure
