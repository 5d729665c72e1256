"""Figures of the studies of critics: curves of accuracy, and which curves were told apart."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.reporting import band, footnote
from experiments.symbolic_discriminator.reading import CHANCE, final, horizon, smoothed
from experiments.symbolic_discriminator.study_figures import deciding_figure, parallel, trend_figure

SHOWN = 5  # curves of a kind, as in the notebook
COLOURS = ("C0", "C1")  # of formulas and of networks, as there
KINDS = ("formula", "untrained network")


def accuracy(results: xr.Dataset) -> Mapping[str, Figure]:
    """Accuracy over training of the notebook's first critic, by objective."""
    figure, axes = _axes("Accuracy of a critic of 6 hidden layers of 128", results)
    _curves(axes, results, results.objective.values)
    return {"accuracy": figure}


def libraries(results: xr.Dataset) -> Mapping[str, Figure]:
    """Accuracy over training and at its end, by library."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    figure.suptitle("Larger libraries are harder to tell from untrained networks")
    _label(left, results)
    _curves(left, results, results.library.values)
    ends = final(results, "fresh_accuracy")
    places = np.arange(len(ends))
    right.plot(places, ends, ".", color="0.6", markersize=4)
    right.plot(places, ends.mean(axis=1), "o-", color="C0", label="mean over seeds; dots: seeds")
    right.axhline(CHANCE, color="0.3", linestyle=":", label="chance")
    right.set_xticks(places, results.library.values, rotation=30, ha="right")
    right.set(xlabel="library, each with the formulas of the one before, but for the last", ylim=(0.4, 1.02))
    right.set(ylabel="accuracy on new curves at the end", title="until classification fails")
    right.legend()
    footnote(figure, _note(results))
    return {"libraries": figure}


def depth(results: xr.Dataset) -> Mapping[str, Figure]:
    """Accuracy over training of the notebook's eight versions."""
    figure, axes = _axes("Depth: from a small critic, one change at a time", results)
    labels = [
        f"v{i}: {int(c.layers)} x {int(c.width)}, rate {float(c.learning_rate):g}, "
        f"penalty {float(c.penalty):g}"
        for i, c in enumerate(_each(results))
    ]
    _curves(axes, results, labels)
    return {"depth": figure}


def hyper_parameters(results: xr.Dataset) -> Mapping[str, Figure]:
    """The trends, what decides, and all configurations side by side."""
    return {
        "trends": trend_figure(results),
        "deciding": deciding_figure(results),
        "configurations": parallel(results),
    }


def extensions(results: xr.Dataset) -> Mapping[str, Figure]:
    """Accuracy over training of the best configuration of every extension, and what the best judged."""
    chosen = []
    for name in dict.fromkeys(results.extension.values.tolist()):
        places = np.flatnonzero(results.extension.values == name)
        chosen.append(places[_best(final(results, "fresh_accuracy")[places].mean(axis=1))])
    best = results.isel(configuration=chosen)
    figure, axes = _axes("The best critic with every extension of a curve", results)
    _curves(
        axes, best, [f"{c.extension.item().replace('_', ', ')}, {c.objective.item()}" for c in _each(best)]
    )
    ends = final(best, "fresh_accuracy").mean(axis=1)
    return {"extensions": figure, "predictions": predictions(best.isel(configuration=_best(ends)))}


def predictions(critic: xr.Dataset) -> Figure:
    """Curves that a critic judged rightly and wrongly, of its first seed."""
    logits = critic.logits.values[0]
    right = np.stack([logits[0] > 0, logits[1] <= 0])
    figure, grid = plt.subplots(2, 2, figsize=(10, 7), layout="constrained", sharex=True, sharey=True)
    seen = critic.extension.item().replace("_", ", ")
    figure.suptitle(f"What the best critic (extension: {seen}) judged rightly and wrongly")
    order = np.argsort(critic.x.values)
    for row, kind, colour in zip(range(2), KINDS, COLOURS, strict=True):
        for column, (title, judged) in enumerate((("correct", right[row]), ("false", ~right[row]))):
            places = np.flatnonzero(judged)[:SHOWN]
            axes = grid[row, column]
            for place in places:
                curve = critic.judged_curve.values[row, place]
                label = f"logit {logits[row, place]:.2f}"
                axes.plot(critic.x.values[order], curve[order], color=colour, alpha=0.3)
                axes.plot(critic.x.values, curve, ".", markersize=3, label=label)
            axes.set_title(f"{kind}: {title}, {len(places)} of {judged.sum()} (of {judged.size} curves)")
            axes.set(xlabel="x" if row else "", ylabel="" if column else "value")
            if len(places):
                axes.legend(fontsize="x-small")
            else:
                axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center")
    return figure


def _best(accuracy: np.ndarray) -> int:
    """The place of the largest; one that diverged is the last choice."""
    return int(np.nan_to_num(accuracy, nan=-1.0).argmax())


def _each(results: xr.Dataset) -> Iterable[xr.Dataset]:
    return (results.isel(configuration=i) for i in range(results.sizes["configuration"]))


def _axes(title: str, results: xr.Dataset) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    figure.suptitle(title)
    _label(axes, results)
    footnote(figure, _note(results))
    return figure, axes


def _note(results: xr.Dataset) -> str:
    seeds, epochs = results.sizes["seed"], int(results.epoch.values[-1])
    return f"mean and 95 % interval over {seeds} seeds; averaged over {horizon(epochs)} epochs"


def _label(axes: Axes, results: xr.Dataset) -> None:
    axes.set(xlabel="epoch", ylabel="accuracy on new curves", ylim=(0.4, 1.02))
    axes.axhline(CHANCE, color="0.3", linestyle=":", label="chance")


def _curves(axes: Axes, results: xr.Dataset, labels: Iterable[Any]) -> None:
    epochs = results.epoch.values
    curves = smoothed(results.fresh_accuracy.values, epochs)
    for curve, label in zip(curves, labels, strict=True):
        band(axes, epochs, curve, label=str(label))
    axes.legend(fontsize="small")
