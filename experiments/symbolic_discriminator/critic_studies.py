"""Studies of critics: accuracy, libraries, hyper-parameters, depth and extensions."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from experiments.reporting import band, bars, footnote, note_seeds, parallel_coordinates, summary_rows
from experiments.running import group_by_shape
from experiments.symbolic_discriminator import reading, spaces
from experiments.symbolic_discriminator.config import Config
from experiments.symbolic_discriminator.critics import METRICS, judged_curves, run_group, schedule
from experiments.symbolic_discriminator.reading import CHANCE, FIELDS, TRENDS, final, smoothed, split
from experiments.symbolic_discriminator.study import Part, Rows, Study

SHOWN = 5  # curves of each kind, as in the notebook
COLOURS = ("C0", "C1")  # of formulas and networks, as in the notebook, and of the objectives


def of_each(results: xr.Dataset, prefix: str, field: str) -> Rows:
    """Summarises accuracies over all configurations and seeds with the same value of a field."""
    rows = []
    for value, chosen in split(results, field).items():
        metrics = {name: final(chosen, name).ravel() for name in METRICS}
        metrics["epochs_to_0.9"] = reading.first_epoch_reaching(chosen, 0.9).ravel()
        metrics["seconds"] = chosen.seconds.values
        metrics["best"] = np.array([np.fmax.reduce(metrics["fresh_accuracy"])])
        rows += summary_rows(f"{prefix}{value}", metrics, kind="part")
    return rows


def extension_rows(results: xr.Dataset) -> Rows:
    """Summarises the accuracies of every extension, for each objective."""
    return [
        row
        for objective, chosen in split(results, "objective").items()
        for row in of_each(chosen, f"extensions: {objective}: ", "extension")
    ]


def hyper_parameter_rows(results: xr.Dataset) -> Rows:
    """Summarises accuracies, trends, and shares of the variance by hyper-parameter, for each objective."""
    rows, shares = of_each(results, "hyper_parameters: ", "objective"), []
    for objective, chosen in split(results, "objective").items():
        followed = reading.trends(chosen)
        counts = {trend: np.array([followed.count(trend) / len(followed)]) for trend in TRENDS}
        rows += summary_rows(f"trends: {objective}", counts, kind="part")
        for field, found in reading.deciding(chosen).items():
            mean, *ends = (None if np.isnan(v) else v for v in found)
            row = {"part": f"deciding: {objective}", "metric": field, "mean": mean, "ci95": ends}
            shares.append({**row, "n": chosen.sizes["configuration"]})
    return rows + shares


def accuracy(results: xr.Dataset) -> Figure:
    """Accuracy during training of the notebook's first critic, by objective."""
    title = "Accuracy of a critic of 6 hidden layers of 128"
    return over_training(title, results, results.objective.values)


def depth(results: xr.Dataset) -> Figure:
    """Accuracy during training of the notebook's eight versions."""
    each = zip(*(results[f].values for f in ("layers", "width", "learning_rate", "penalty")), strict=True)
    labels = [f"v{i}: {n} x {m}, rate {rate:g}, penalty {gp:g}" for i, (n, m, rate, gp) in enumerate(each)]
    return over_training("Depth: from a small critic, one change at a time", results, labels)


def libraries(results: xr.Dataset) -> Figure:
    """Accuracy during training and at the end, by library."""
    title = "Larger libraries are harder to tell from untrained networks"
    figure = over_training(title, results, results.library.values, panels=2)
    ends, right = final(results, "fresh_accuracy"), figure.axes[1]
    places = np.arange(len(ends))
    right.plot(places, ends, ".", color="0.6", markersize=4)
    right.plot(places, ends.mean(axis=1), "o-", color="C0", label="mean over seeds; dots: seeds")
    right.axhline(CHANCE, color="0.3", linestyle=":", label="chance")
    right.set_xticks(places, results.library.values, rotation=30, ha="right")
    right.set(xlabel="library (each contains the previous one, except the last)", ylim=(0.4, 1.02))
    right.set(ylabel="accuracy on new curves", title="Final accuracy")
    right.legend()
    return figure


def best_of_each(results: xr.Dataset) -> xr.Dataset:
    """Returns the best configuration of every extension, with its accuracy as `end`; NaN ranks last."""
    ends = np.nan_to_num(final(results, "fresh_accuracy").mean(axis=1), nan=-1.0)
    results = results.assign_coords(end=("configuration", ends))
    best = [int(of.end.idxmax("configuration")) for of in split(results, "extension").values()]
    return results.sel(configuration=best)


def extensions(results: xr.Dataset) -> Figure:
    """Accuracy during training of the best configuration of every extension."""
    best = best_of_each(results)
    names = zip(best.extension.values, best.objective.values, strict=True)
    labels = [f"{extension.replace('_', ', ')}, {objective}" for extension, objective in names]
    return over_training("The best critic with every extension of a curve", best, labels)


def predictions(results: xr.Dataset) -> Figure:
    """Curves that the best critic of the first seed classified correctly and incorrectly."""
    best = best_of_each(results)
    critic = best.sel(configuration=best.end.idxmax("configuration"))
    x, kinds = critic.x.values, ("formula", "untrained network")
    order, logits = np.argsort(x), critic.logits.values[0]
    figure, grid = plt.subplots(2, 2, figsize=(10, 7), sharex=True, sharey=True)
    seen = critic.extension.item().replace("_", ", ")
    figure.suptitle(f"Curves classified correctly and incorrectly by the best critic (extension: {seen})")
    for number, axes in enumerate(grid.flat):
        kind, is_wrong = divmod(number, 2)
        judged = ((logits[kind] > 0) == (kind == 0)) != is_wrong
        shown = np.flatnonzero(judged)[:SHOWN]
        for curve, logit in zip(critic.judged_curve.values[kind, shown], logits[kind, shown], strict=True):
            axes.plot(x[order], curve[order], color=COLOURS[kind], alpha=0.3)
            axes.plot(x, curve, ".", markersize=3, label=f"logit {logit:.2f}")
        verdict = f"{'in' * is_wrong}correct, {len(shown)} of {judged.sum()} (of {judged.size} curves)"
        axes.set(title=f"{kinds[kind]}: {verdict}", xlabel="x" * kind, ylabel="" if is_wrong else "value")
        if len(shown):
            axes.legend(fontsize="x-small")
        else:
            axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center")
    return figure


def configurations(results: xr.Dataset) -> Figure:
    """All configurations and their scores."""
    columns = {field: results[field].values for field in ("objective", *FIELDS)}
    columns = {field: values for field, values in columns.items() if len(np.unique(values)) > 1}
    return parallel_coordinates(columns, final(results).mean(axis=1), "final accuracy", (), 1)


def trends(results: xr.Dataset) -> Figure:
    """Accuracy during training of all configurations, one panel for each of the notebook's trends."""
    figure, grid = plt.subplots(2, 2, figsize=(11, 7), sharex=True, sharey=True)
    figure.suptitle(f"Trends of {results.sizes['configuration']} random configurations")
    for number, (axes, trend) in enumerate(zip(grid.flat, TRENDS, strict=True)):
        counts = []
        for (objective, of), colour in zip(split(results, "objective").items(), COLOURS, strict=False):
            chosen = smoothed(of).mean(axis=1)[np.array(reading.trends(of)) == trend]
            lines = axes.plot(of.epoch.values, chosen.T, color=colour, alpha=0.35, linewidth=0.8)
            plt.setp(lines[:1], label=objective)
            counts.append(f"{len(chosen)} {objective}")
        axes.axhline(CHANCE, color="0.3", linestyle=":")
        axes.set(title=f"{number + 1}. {trend} ({', '.join(counts)})", ylim=(0.3, 1.02))
        axes.set(xlabel="epoch" if number > 1 else "", ylabel="" if number % 2 else "accuracy")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    footnote(figure, f"one seed each; mean over the critic's steps in an epoch, {_averaged(results)}")
    return figure


def deciding(results: xr.Dataset) -> Figure:
    """Share of the variance of final accuracy explained by each hyper-parameter, by objective."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), width_ratios=(1, 1.6))
    figure.suptitle(f"Which hyper-parameters matter: {results.sizes['configuration']} configurations")
    of_fields = {field: np.unique(results[field].values) for field in FIELDS}
    levels = {field: each for field, each in of_fields.items() if len(each) > 1}
    starts = np.cumsum([0, *(1 + len(each) for each in levels.values())])
    places = {field: s + np.arange(len(levels[field])) for field, s in zip(levels, starts, strict=False)}
    objectives = split(results, "objective")
    for number, ((objective, chosen), colour) in enumerate(zip(objectives.items(), COLOURS, strict=False)):
        found, ends = reading.deciding(chosen), final(chosen).mean(axis=1)
        values = np.array([found.get(field, [np.nan] * 3) for field in levels]).reshape(-1, 3)
        heights = np.arange(len(levels)) + 0.36 * (number - (len(objectives) - 1) / 2)
        errors = np.abs(values[:, 1:] - values[:, :1]).T
        left.barh(heights, values[:, 0], 0.34, xerr=errors, color=colour, label=objective)
        for field, each in levels.items():
            of_level = [ends[chosen[field].values == level] for level in each]
            bars(right, places[field], of_level, fmt="o-", capsize=2, color=colour)
    left.set_yticks(range(len(levels)), [field.replace("_", " ") for field in levels])
    left.invert_yaxis()
    left.set(xlabel="share of the variance of final accuracy", title="each alone, 95 % bootstrap interval")
    left.legend(title="objective")
    above = {"ha": "center", "fontsize": "small", "transform": right.get_xaxis_transform()}
    for field, at in places.items():
        right.text(at.mean(), 1.01, field.replace("_", " "), **above)
    texts = [f"{level:g}" for each in levels.values() for level in each]
    right.set_xticks([place for at in places.values() for place in at], texts, rotation=90, fontsize="small")
    right.axhline(CHANCE, color="0.3", linestyle=":")
    right.set(ylabel="final accuracy, mean and 95 % interval", xlabel="value")
    return figure


def over_training(title: str, results: xr.Dataset, labels: Iterable[Any], panels: int = 1) -> Figure:
    """Draws the accuracy on new curves during training, for all configurations, in the first panel."""
    size = (9, 5) if panels == 1 else (11, 4.5)
    figure, grid = plt.subplots(1, panels, figsize=size, squeeze=False)
    figure.suptitle(title)
    axes = grid[0, 0]
    axes.set(xlabel="epoch", ylabel="accuracy on new curves", ylim=(0.4, 1.02))
    axes.axhline(CHANCE, color="0.3", linestyle=":", label="chance")
    for curve, label in zip(smoothed(results, "fresh_accuracy"), labels, strict=True):
        band(axes, results.epoch.values, curve, label=str(label))
    axes.legend(fontsize="small")
    note_seeds(figure, results, f"; {_averaged(results)}")
    return figure


def _averaged(results: xr.Dataset) -> str:
    return f"averaged over {reading.horizon(int(results.epoch.values[-1]))} epochs"


def study(name: str, rows: Callable[[xr.Dataset], Rows], *figures: Callable[[xr.Dataset], Figure]) -> Study:
    """Makes the study of the configurations with this name."""

    def parts(config: Config) -> dict[str, Part]:
        seeds = 1 if name == "hyper_parameters" else config.chosen.seeds
        _, steps = schedule(config.chosen.epochs)
        return {
            f"{name}-{spaces.name_of(group.static)}": Part(partial(run_group, group, config, seeds), steps)
            for group in group_by_shape(spaces.CONFIGURATIONS[name](config), spaces.STATIC)
        }

    def merge(config: Config, found: Sequence[xr.Dataset]) -> xr.Dataset:
        results = xr.concat(found, "configuration", join="outer").sortby("configuration")
        chosen = spaces.CONFIGURATIONS[name](config)
        fields = {field: ("configuration", [c[field] for c in chosen]) for field in chosen[0]}
        x = np.asarray(spaces.points("normal", config.chosen.points, config.seed))[:, 0]
        judged = np.asarray(judged_curves("quadratic", "none", config))
        variables = {"judged_curve": (("kind", "curve", "point"), judged), "x": ("point", x)}
        return results.assign_coords(fields).assign(variables)

    return Study(parts, merge, rows, figures)


STUDIES = {
    "accuracy": study("accuracy", partial(of_each, prefix="accuracy: ", field="objective"), accuracy),
    "libraries": study("libraries", partial(of_each, prefix="libraries: ", field="library"), libraries),
    "hyper_parameters": study("hyper_parameters", hyper_parameter_rows, trends, deciding, configurations),
    "depth": study("depth", partial(of_each, prefix="depth: v", field="configuration"), depth),
    "extensions": study("extensions", extension_rows, extensions, predictions),
}
