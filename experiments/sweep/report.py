"""Results, table and figures of a sweep."""

import json
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import optuna
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState

from experiments import reporting
from experiments.sweep.space import Space
from experiments.sweep.workers import finished, slot_of

SHOWN = 10
VARIABLES = {
    "trial": ("1", "index of the trial"),
    "seed": ("1", "index of the seed"),
    "parameter": ("1", "hyper-parameter"),
    "score": ("1", "objective"),
    "median": ("1", "median over seeds"),
    "low": ("1", "lower end of the 95 % interval of the median"),
    "high": ("1", "upper end of the 95 % interval of the median"),
    "complete": ("1", "whether the trial ran to the end"),
    "importance": ("1", "share of the variance explained by a hyper-parameter"),
    "*": ("1", "value of a hyper-parameter"),
}


def summary(scores: np.ndarray) -> tuple[float, float, float]:
    """Returns the median over seeds and its 95 % interval by order statistics; NaN if any score is NaN."""
    if not scores.size or np.isnan(scores).any():
        return float("nan"), float("nan"), float("nan")
    return float(np.median(scores)), *reporting.median_interval(scores)[1:]


def as_dataset(study: optuna.Study, space: Space) -> xr.Dataset:
    """Returns all finished trials with named axes, indexed by their slots."""
    trials, names = finished(study), list(space.searched)
    seeds = max(len(trial.user_attrs.get("scores", [])) for trial in trials)
    scores = np.array([trial.user_attrs.get("scores", [np.nan] * seeds) for trial in trials])
    median, low, high = np.array([summary(of_trial) for of_trial in scores]).T
    complete = np.array([trial.state == TrialState.COMPLETE for trial in trials])
    decided = len(np.unique(median[complete])) > 1
    shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0)) if decided else {}
    objective = space.sweepable.objective
    of_trials = {
        "median": np.where(complete, median, np.nan), "low": low, "high": high, "complete": complete,
        **{name: [trial.params[name] for trial in trials] for name in names},
    }  # fmt: skip
    variables: dict[str, Any] = {
        "score": (("trial", "seed"), scores, {"long_name": objective}),
        "importance": ("parameter", [shares.get(name, np.nan) for name in names]),
        **{name: ("trial", values) for name, values in of_trials.items()},
    }
    coordinates = {"trial": list(map(slot_of, trials)), "seed": np.arange(seeds), "parameter": names}
    logarithmic = [name for name, over in space.searched.items() if getattr(over, "log", False)]
    attributes = {
        "objective": objective, "direction": space.sweepable.direction,
        "fixed": json.dumps(space.fixed), "logarithmic": json.dumps(logarithmic),
    }  # fmt: skip
    return xr.Dataset(variables, coordinates, attributes)


def best_first(results: xr.Dataset) -> np.ndarray:
    """Returns the indices of the completed trials, from the best to the worst."""
    places = np.flatnonzero(results.complete.values)
    sign = -1 if results.direction == "maximize" else 1
    return places[np.argsort(sign * results["median"].values[places], kind="stable")]


def rows(results: xr.Dataset) -> list[dict[str, Any]]:
    """Returns the rows of `summary.json`: number of trials, best trials, importance of hyper-parameters."""
    names, order = [str(n) for n in results.parameter.values], best_first(results)
    best = [results.isel(trial=place) for place in order[:SHOWN]]
    return [
        {"trials": results.sizes["trial"], "completed": len(order), "objective": results.objective},
        *({
            "trial": int(one.trial), "median": float(one["median"]),
            "ci95": [float(one.low), float(one.high)], "n": results.sizes["seed"],
            **{name: one[name].item() for name in names},
        } for one in best),
        *({"parameter": name, "importance": results.importance.sel(parameter=name).item()} for name in names),
    ]  # fmt: skip


def table(summary: list[dict[str, Any]]) -> str:
    """Returns the printed table: the best trials, with 95 % intervals over seeds."""
    head, *others = summary
    count = f"{head['trials']} trials, {head['trials'] - head['completed']} of them stopped early"
    names = [row["parameter"] for row in others if "parameter" in row]
    best = [row for row in others if "trial" in row]
    if not best:
        return count
    lines = []
    for row in best:
        low, high = ("-" if end is None else f"{end:.4g}" for end in row["ci95"])
        cells = [f"{row[n]:.3g}" if isinstance(row[n], float) else str(row[n]) for n in names]
        lines.append([str(row["trial"]), f"{row['median']:.4g}", f"{low} .. {high}", *cells])
    title = f"{head['objective']}: median over {best[0]['n']} seeds, with 95 % interval; {count}"
    return f"{title}\n\n" + reporting.table(["trial", "median", "interval", *names], lines)


def figures(results: xr.Dataset) -> dict[str, Figure]:
    """Draws all figures; returns none if no trial was completed."""
    if not results.complete.any():
        return {}
    drawn = reporting.drawn((history, importance, parallel_coordinates, slices), results)
    sizes = f"{results.sizes['trial']} trials, {int((~results.complete).sum())} stopped early"
    for figure in drawn.values():
        reporting.footnote(figure, f"{sizes}; median over {results.sizes['seed']} seeds")
    return drawn


def _scatter(axes: Axes, results: xr.Dataset, name: str) -> PathCollection:
    """Draws scores against the index of the trial or a hyper-parameter."""
    done, x = results.complete.values, results[name].values
    if x.dtype.kind not in "fi":
        x = x.astype(str)
        axes.xaxis.update_units(np.unique(x))  # in alphabetical order
        axes.tick_params("x", rotation=20)
    elif name in json.loads(results.logarithmic):
        axes.set_xscale("log")
    median, low, high = (reporting.drawable(results[n].values[done]) for n in ("median", "low", "high"))
    style = {"fmt": "none", "ecolor": "0.7", "linewidth": 0.7, "label": "95 % interval over seeds"}
    axes.errorbar(x[done], median, [median - low, high - median], **style)
    numbers = results.trial.values[done]
    shown = axes.scatter(x[done], median, c=numbers, s=14, zorder=2, label="median over seeds")
    stopped = reporting.drawable(np.median(results.score.values[~done], axis=1))
    axes.scatter(x[~done], stopped, marker="x", color="0.6", s=18, linewidths=0.8, label="stopped early")
    if np.isfinite(median).any():  # a few diverged trials would compress all others
        ends = np.nanpercentile(median, (2, 100) if results.direction == "maximize" else (0, 98))
        axes.set_ylim(reporting.limits(ends, 0.08))
    axes.set_xlabel(name)
    axes.grid(alpha=0.3)
    return shown


def history(results: xr.Dataset) -> Figure:
    """Scores of all trials in order, with their intervals, and the best score so far."""
    figure, axes = plt.subplots(figsize=(9, 5))
    _scatter(axes, results, "trial")
    done = results.complete.values
    best = np.fmax if results.direction == "maximize" else np.fmin
    so_far = best.accumulate(reporting.drawable(results["median"].values[done]))
    axes.step(results.trial.values[done], so_far, where="post", color="tab:red", label="best so far")
    axes.set(title="Scores of all trials", ylabel=results.objective)
    axes.legend(frameon=False, fontsize="small")
    return figure


def importance(results: xr.Dataset) -> Figure:
    """Importance of hyper-parameters: shares of the variance over completed trials."""
    shares = results.importance.sortby(results.importance)
    figure, axes = plt.subplots(figsize=(8, 1.6 + 0.5 * shares.size))
    axes.bar_label(axes.barh(shares.parameter.values.astype(str), shares.values), fmt="%.2f", padding=3)
    axes.set(title=f"Importance for the {results.objective}", xlim=(0, 1.1))
    axes.set(xlabel="share of the variance (functional ANOVA)")
    axes.grid(axis="x", alpha=0.3)
    return figure


def slices(results: xr.Dataset) -> Figure:
    """Scores against each hyper-parameter."""
    names = [str(name) for name in results.parameter.values]
    figure = plt.figure(figsize=(1 + 4 * len(names), 4.4))
    every = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    shown = [_scatter(axes, results, name) for axes, name in zip(every, names, strict=True)]
    every[0].set_ylabel(results.objective)
    every[0].legend(frameon=False, fontsize="small")
    figure.colorbar(shown[-1], ax=every[-1], label="trial")
    figure.suptitle("Scores against each hyper-parameter")
    return figure


def parallel_coordinates(results: xr.Dataset) -> Figure:
    """One line per completed trial through its hyper-parameters and its score, the best on top."""
    chosen, best = results.isel(trial=results.complete.values), 1 if results.direction == "maximize" else -1
    columns = {str(name): chosen[name].values for name in results.parameter.values}
    scores, logarithmic = chosen["median"].values, json.loads(results.logarithmic)
    return reporting.parallel_coordinates(columns, scores, results.objective, logarithmic, best)
