"""Studies of critics: accuracy, libraries, hyper-parameters, depth and extensions."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.reporting import band, footnote, note_seeds, parallel_coordinates, summary_rows
from experiments.running import group_by_shape
from experiments.symbolic_discriminator import reading, spaces
from experiments.symbolic_discriminator.config import Config
from experiments.symbolic_discriminator.critics import METRICS, costs, judged_curves, run_group
from experiments.symbolic_discriminator.reading import CHANCE, FIELDS, TRENDS, by_objective, final, smoothed
from experiments.symbolic_discriminator.spaces import points
from experiments.symbolic_discriminator.study import Figures, Part, Rows, Study

SHOWN = 5  # curves of each kind, as in the notebook
COLOURS = ("C0", "C1")  # of formulas and networks, as in the notebook, and of the objectives


def of_each(results: xr.Dataset, study: str, field: str) -> Rows:
    """Summarises accuracies over all configurations and seeds with the same value of a field."""
    rows, values = [], results[field].values
    for value in dict.fromkeys(values.tolist()):
        chosen = results.isel(configuration=np.flatnonzero(values == value))
        metrics = {name: final(chosen, name).ravel() for name in METRICS}
        metrics["epochs_to_0.9"] = reading.first_epoch_reaching(chosen, 0.9).ravel()
        metrics["seconds"] = chosen.seconds.values
        metrics["best"] = np.array([np.fmax.reduce(metrics["fresh_accuracy"])])
        rows += summary_rows(f"{study}: {value}", metrics, kind="part")
    return rows


def depth_rows(results: xr.Dataset) -> Rows:
    """Summarises the accuracies of every version."""
    versions = [f"v{i}" for i in results.configuration.values]
    return of_each(results.assign_coords(version=("configuration", versions)), "depth", "version")


def hyper_parameter_rows(results: xr.Dataset) -> Rows:
    """Summarises accuracies, trends, and shares of the variance by hyper-parameter, for each objective."""
    rows, shares = of_each(results, "hyper_parameters", "objective"), []
    for objective, chosen in by_objective(results).items():
        followed = reading.trends(chosen)
        counts = {trend: np.array([followed.count(trend) / len(followed)]) for trend in TRENDS}
        rows += summary_rows(f"trends: {objective}", counts, kind="part")
        for field, found in reading.deciding(chosen).items():
            mean, *ends = (None if np.isnan(v) else v for v in found)
            row = {"part": f"deciding: {objective}", "metric": field, "mean": mean, "ci95": ends}
            shares.append({**row, "n": chosen.sizes["configuration"]})
    return rows + shares


def extension_rows(results: xr.Dataset) -> Rows:
    """Summarises the accuracies of every extension, for each objective."""
    chosen = by_objective(results).items()
    return [row for name, of in chosen for row in of_each(of, f"extensions: {name}", "extension")]


def accuracy_figures(results: xr.Dataset) -> Figures:
    """Accuracy during training of the notebook's first critic, by objective."""
    title = "Accuracy of a critic of 6 hidden layers of 128"
    return {"accuracy": _over_training(title, results, results.objective.values)}


def depth_figures(results: xr.Dataset) -> Figures:
    """Accuracy during training of the notebook's eight versions."""
    each = zip(*(results[f].values for f in ("layers", "width", "learning_rate", "penalty")), strict=True)
    labels = [f"v{i}: {n} x {m}, rate {rate:g}, penalty {gp:g}" for i, (n, m, rate, gp) in enumerate(each)]
    return {"depth": _over_training("Depth: from a small critic, one change at a time", results, labels)}


def libraries_figures(results: xr.Dataset) -> Figures:
    """Accuracy during training and at the end, by library."""
    title = "Larger libraries are harder to tell from untrained networks"
    figure = _over_training(title, results, results.library.values, panels=2)
    ends, right = final(results, "fresh_accuracy"), figure.axes[1]
    places = np.arange(len(ends))
    right.plot(places, ends, ".", color="0.6", markersize=4)
    right.plot(places, ends.mean(axis=1), "o-", color="C0", label="mean over seeds; dots: seeds")
    right.axhline(CHANCE, color="0.3", linestyle=":", label="chance")
    right.set_xticks(places, results.library.values, rotation=30, ha="right")
    right.set(xlabel="library (each contains the previous one, except the last)", ylim=(0.4, 1.02))
    right.set(ylabel="accuracy on new curves", title="Final accuracy")
    right.legend()
    return {"libraries": figure}


def extensions_figures(results: xr.Dataset) -> Figures:
    """Accuracy during training of the best configuration of every extension, and curves that it judged."""
    ends, names = final(results, "fresh_accuracy").mean(axis=1), results.extension.values
    ends = np.nan_to_num(ends, nan=-1.0)  # one that diverged ranks last
    chosen = [int(np.where(names == name, ends, -2.0).argmax()) for name in dict.fromkeys(names.tolist())]
    labels = [f"{names[i].replace('_', ', ')}, {results.objective.values[i]}" for i in chosen]
    best, title = results.isel(configuration=chosen), "The best critic with every extension of a curve"
    shown = predictions(best.isel(configuration=int(ends[chosen].argmax())))
    return {"extensions": _over_training(title, best, labels), "predictions": shown}


def predictions(critic: xr.Dataset) -> Figure:
    """Curves that a critic of the first seed classified correctly and incorrectly."""
    logits = critic.logits.values[0]
    right = np.stack([logits[0] > 0, logits[1] <= 0])
    figure, grid = plt.subplots(2, 2, figsize=(10, 7), sharex=True, sharey=True)
    seen = critic.extension.item().replace("_", ", ")
    figure.suptitle(f"Curves classified correctly and incorrectly by the best critic (extension: {seen})")
    order = np.argsort(critic.x.values)
    for row, (kind, colour) in enumerate(zip(("formula", "untrained network"), COLOURS, strict=True)):
        verdicts = {"correct": right[row], "incorrect": ~right[row]}
        for axes, (title, judged) in zip(grid[row], verdicts.items(), strict=True):
            places = np.flatnonzero(judged)[:SHOWN]
            for place in places:
                curve = critic.judged_curve.values[row, place]
                label = f"logit {logits[row, place]:.2f}"
                axes.plot(critic.x.values[order], curve[order], color=colour, alpha=0.3)
                axes.plot(critic.x.values, curve, ".", markersize=3, label=label)
            axes.set_title(f"{kind}: {title}, {len(places)} of {judged.sum()} (of {judged.size} curves)")
            axes.set(xlabel="x" if row else "", ylabel="value" if title == "correct" else "")
            if len(places):
                axes.legend(fontsize="x-small")
            else:
                axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center")
    return figure


def hyper_parameters_figures(results: xr.Dataset) -> Figures:
    """Trends, shares of the variance by hyper-parameter, and all configurations."""
    fields = [field for field in ("objective", *FIELDS) if len(np.unique(results[field].values)) > 1]
    columns = {field: results[field].values for field in fields}
    ends = final(results).mean(axis=1)
    return {
        "trends": trend_figure(results),
        "deciding": deciding_figure(results),
        "configurations": parallel_coordinates(columns, ends, "final accuracy", (), 1),
    }


def trend_figure(results: xr.Dataset) -> Figure:
    """Accuracy during training of all configurations, one panel for each of the notebook's trends."""
    figure, grid = plt.subplots(2, 2, figsize=(11, 7), sharex=True, sharey=True)
    figure.suptitle(f"Trends of {results.sizes['configuration']} random configurations")
    counts: dict[str, list[str]] = {trend: [] for trend in TRENDS}
    for (objective, of), colour in zip(by_objective(results).items(), COLOURS, strict=False):
        curves, followed = smoothed(of).mean(axis=1), np.array(reading.trends(of))
        for axes, trend in zip(grid.flat, TRENDS, strict=True):
            chosen = curves[followed == trend]
            counts[trend].append(f"{len(chosen)} {objective}")
            if len(chosen):
                lines = axes.plot(of.epoch.values, chosen.T, color=colour, alpha=0.35, linewidth=0.8)
                lines[0].set_label(objective)
    for number, (axes, trend) in enumerate(zip(grid.flat, TRENDS, strict=True)):
        axes.axhline(CHANCE, color="0.3", linestyle=":")
        axes.set(title=f"{number + 1}. {trend} ({', '.join(counts[trend])})", ylim=(0.3, 1.02))
        axes.set(xlabel="epoch" if number > 1 else "", ylabel="" if number % 2 else "accuracy")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    footnote(figure, f"one seed each; mean over the critic's steps in an epoch, {_averaged(results)}")
    return figure


def deciding_figure(results: xr.Dataset) -> Figure:
    """Share of the variance of final accuracy explained by each hyper-parameter, by objective."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), width_ratios=(1, 1.6))
    figure.suptitle(f"Which hyper-parameters matter: {results.sizes['configuration']} configurations")
    levels = {field: np.unique(results[field].values) for field in FIELDS}
    levels = {field: of for field, of in levels.items() if len(of) > 1}
    starts = np.cumsum([0, *(1 + len(of) for of in levels.values())])
    objectives = by_objective(results)
    for number, ((objective, chosen), colour) in enumerate(zip(objectives.items(), COLOURS, strict=False)):
        found, ends = reading.deciding(chosen), final(chosen).mean(axis=1)
        values = np.array([found.get(field, [np.nan] * 3) for field in levels])
        heights = np.arange(len(levels)) + 0.36 * (number - (len(objectives) - 1) / 2)
        errors = np.abs(values[:, 1:] - values[:, :1]).T
        left.barh(heights, values[:, 0], 0.34, xerr=errors, color=colour, label=objective)
        for start, (field, each) in zip(starts, levels.items(), strict=False):
            of_level = [ends[chosen[field].values == level] for level in each]
            means = np.array([a.mean() if a.size else np.nan for a in of_level])
            spread = np.array([1.96 * a.std(ddof=1) / np.sqrt(a.size) if a.size > 1 else 0 for a in of_level])
            right.errorbar(start + np.arange(len(each)), means, spread, marker="o", capsize=2, color=colour)
    left.set_yticks(range(len(levels)), [field.replace("_", " ") for field in levels])
    left.invert_yaxis()
    left.set(xlabel="share of the variance of final accuracy", title="each alone, 95 % bootstrap interval")
    left.legend(title="objective")
    for start, (field, each) in zip(starts, levels.items(), strict=False):
        above = {"ha": "center", "fontsize": "small", "transform": right.get_xaxis_transform()}
        right.text(start + (len(each) - 1) / 2, 1.01, field.replace("_", " "), **above)
    places = np.concatenate([s + np.arange(len(of)) for s, of in zip(starts, levels.values(), strict=False)])
    texts = [f"{level:g}" for of in levels.values() for level in of]
    right.set_xticks(places, texts, rotation=90, fontsize="small")
    right.axhline(CHANCE, color="0.3", linestyle=":")
    right.set(ylabel="final accuracy, mean and 95 % interval", xlabel="value")
    return figure


def _over_training(title: str, results: xr.Dataset, labels: Iterable[Any], panels: int = 1) -> Figure:
    """Draws the accuracy on new curves during training, for all configurations, in the first panel."""
    size = (9, 5) if panels == 1 else (11, 4.5)
    figure, grid = plt.subplots(1, panels, figsize=size, squeeze=False)
    figure.suptitle(title)
    axes: Axes = grid[0, 0]
    axes.set(xlabel="epoch", ylabel="accuracy on new curves", ylim=(0.4, 1.02))
    axes.axhline(CHANCE, color="0.3", linestyle=":", label="chance")
    for curve, label in zip(smoothed(results, "fresh_accuracy"), labels, strict=True):
        band(axes, results.epoch.values, curve, label=str(label))
    axes.legend(fontsize="small")
    note_seeds(figure, results, f"; {_averaged(results)}")
    return figure


def _averaged(results: xr.Dataset) -> str:
    return f"averaged over {reading.horizon(int(results.epoch.values[-1]))} epochs"


def _study(name: str, rows: Callable[[xr.Dataset], Rows], figures: Callable[[xr.Dataset], Figures]) -> Study:
    configurations = getattr(spaces, name)

    def parts(config: Config) -> dict[str, Part]:
        made, seeds = {}, 1 if name == "hyper_parameters" else config.chosen.seeds
        for group in group_by_shape(configurations(config), spaces.STATIC):
            run = partial(run_group, group, config, seeds)
            made[f"{name}-{spaces.name_of(group.static)}"] = Part(run, sum(costs(group, config, seeds)))
        return made

    def merge(config: Config, found: Sequence[xr.Dataset]) -> xr.Dataset:
        results = xr.concat(found, "configuration", join="outer").sortby("configuration")
        chosen = configurations(config)
        fields = {field: ("configuration", [c[field] for c in chosen]) for field in chosen[0]}
        x = np.asarray(points("normal", config.chosen.points, config.seed))[:, 0]
        shown = np.asarray(judged_curves("quadratic", "none", config))
        variables = {"judged_curve": (("kind", "curve", "point"), shown), "x": ("point", x)}
        return results.assign_coords(fields).assign(variables)

    return Study(parts, merge, rows, figures)


STUDIES = {
    "accuracy": _study("accuracy", partial(of_each, study="accuracy", field="objective"), accuracy_figures),
    "libraries": _study("libraries", partial(of_each, study="libraries", field="library"), libraries_figures),
    "hyper_parameters": _study("hyper_parameters", hyper_parameter_rows, hyper_parameters_figures),
    "depth": _study("depth", depth_rows, depth_figures),
    "extensions": _study("extensions", extension_rows, extensions_figures),
}
