"""Figures of the study of hyper-parameters: trends, what decides, and every configuration."""

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from experiments.reporting import footnote
from experiments.symbolic_discriminator.reading import (
    CHANCE,
    FIELDS,
    TRENDS,
    deciding,
    final,
    horizon,
    smoothed,
    trends,
)


def trend_figure(results: xr.Dataset) -> Figure:
    """Accuracy over training of all configurations, one panel for each of the notebook's trends."""
    curves = smoothed(results.accuracy.values, results.epoch.values).mean(axis=1)
    followed = np.array(trends(results))
    figure, grid = plt.subplots(2, 2, figsize=(11, 7), layout="constrained", sharex=True, sharey=True)
    figure.suptitle(f"Trends of {len(curves)} random configurations")
    for number, (axes, trend) in enumerate(zip(grid.flat, TRENDS, strict=True)):
        axes.axhline(CHANCE, color="0.3", linestyle=":")
        counts = []
        for objective, colour in zip(
            dict.fromkeys(results.objective.values.tolist()), ("C0", "C1"), strict=False
        ):
            chosen = curves[(followed == trend) & (results.objective.values == objective)]
            counts.append(f"{len(chosen)} {objective}")
            for place, curve in enumerate(chosen):
                label = objective if place == 0 else None
                axes.plot(results.epoch.values, curve, color=colour, alpha=0.35, linewidth=0.8, label=label)
        axes.set(title=f"{number + 1}. {trend} ({', '.join(counts)})", ylim=(0.3, 1.02))
        axes.set(xlabel="epoch" if number > 1 else "", ylabel="" if number % 2 else "accuracy")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    epochs = int(results.epoch.values[-1])
    footnote(
        figure, f"one seed each; mean over the steps of an epoch, averaged over {horizon(epochs)} epochs"
    )
    return figure


def deciding_figure(results: xr.Dataset) -> Figure:
    """The share of the variance of final accuracy that every hyper-parameter explains, by objective."""
    objectives = list(dict.fromkeys(results.objective.values.tolist()))
    fields = list(deciding(results))
    ups = [1 + len(np.unique(results[field].values)) for field in fields]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 4.8), layout="constrained", width_ratios=(1, 1.6), sharey=False
    )
    figure.suptitle(f"Which hyper-parameters decide: {results.sizes['configuration']} configurations")
    starts = np.cumsum([0, *ups[:-1]])
    for number, (objective, colour) in enumerate(zip(objectives, ("C0", "C1"), strict=False)):
        chosen = results.isel(configuration=np.flatnonzero(results.objective.values == objective))
        shares = deciding(chosen)
        values = np.array([shares[field] for field in fields])
        heights = np.arange(len(fields)) + 0.36 * (number - (len(objectives) - 1) / 2)
        errors = np.abs(values[:, 1:] - values[:, :1]).T
        left.barh(heights, values[:, 0], 0.34, xerr=errors, color=colour, label=objective)
        accuracy = final(chosen).mean(axis=1)
        for start, field in zip(starts, fields, strict=True):
            levels = np.unique(chosen[field].values)
            of_level = [accuracy[chosen[field].values == level] for level in levels]
            means = np.array([a.mean() for a in of_level])
            spread = np.array([1.96 * a.std(ddof=1) / np.sqrt(a.size) if a.size > 1 else 0 for a in of_level])
            right.errorbar(start + np.arange(len(levels)), means, spread, marker="o", capsize=2, color=colour)
    left.set_yticks(range(len(fields)), [field.replace("_", " ") for field in fields])
    left.invert_yaxis()
    left.set(xlabel="share of the variance of final accuracy", title="on its own, with 95 % of resamples")
    left.legend(title="objective")
    places, texts = [], []
    for start, field in zip(starts, fields, strict=True):
        levels = np.unique(results[field].values)
        places += [start + i for i in range(len(levels))]
        texts += [f"{level:g}" for level in levels]
        above = {"ha": "center", "fontsize": "small", "transform": right.get_xaxis_transform()}
        right.text(start + (len(levels) - 1) / 2, 1.01, field.replace("_", " "), **above)
    right.set_xticks(places, texts, rotation=90, fontsize="small")
    right.axhline(CHANCE, color="0.3", linestyle=":")
    right.set(ylabel="final accuracy, mean and 95 % interval", xlabel="value")
    return figure


def parallel(results: xr.Dataset) -> Figure:
    """Parallel coordinates: every configuration a line through its values, coloured by its final accuracy."""
    accuracy = final(results).mean(axis=1)
    fields = [f for f in ("objective", *FIELDS) if len(np.unique(results[f].values)) > 1]
    figure, axes = plt.subplots(figsize=(11, 5), layout="constrained")
    figure.suptitle(f"{len(accuracy)} configurations and their final accuracy")
    jitter = np.random.default_rng(0).uniform(-0.03, 0.03, (len(accuracy), len(fields)))
    columns = []
    for place, field in enumerate(fields):
        levels, which = np.unique(results[field].values, return_inverse=True)
        heights = np.linspace(0.05, 0.95, len(levels)) if len(levels) > 1 else np.array([0.5])
        columns.append(heights[which] + jitter[:, place])
        for level, height in zip(levels, heights, strict=True):
            text = level if isinstance(level, str) else f"{level:g}"
            axes.text(place - 0.03, height, text, ha="right", va="center", fontsize="small")
        axes.axvline(place, color="0.3", linewidth=0.8)
    columns.append((accuracy - 0.3) / 0.7)
    axes.axvline(len(fields), color="0.3", linewidth=0.8)
    for value in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        axes.text(len(fields) + 0.03, (value - 0.3) / 0.7, f"{value:.1f}", va="center", fontsize="small")
    scale, colours = Normalize(0.5, 1), colormaps["viridis"]
    for number in np.argsort(accuracy):
        line = [column[number] for column in columns]
        axes.plot(range(len(columns)), line, color=colours(scale(accuracy[number])), alpha=0.5, linewidth=1)
    names = [*(f.replace("_", " ") for f in fields), "accuracy"]
    axes.set_xticks(range(len(columns)), names)
    axes.set(
        title="each is a line through its values", yticks=[], xlim=(-0.4, len(fields) + 0.4), ylim=(0, 1.03)
    )
    figure.colorbar(ScalarMappable(scale, colours), ax=axes, label="final accuracy")
    return figure
