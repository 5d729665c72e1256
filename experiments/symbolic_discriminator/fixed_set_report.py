"""Report of the study of a fixed set of curves: rows of the summary and a figure."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import reporting
from experiments.symbolic_discriminator.points import PointsName

KINDS: dict[PointsName, str] = {
    "normal": "100 draws from N(0, 1)",
    "grid": "100 points of a grid over -3 to 3",
}
CLASSIFIERS = {
    "wgan": "wgan critic",
    "bce": "bce critic",
    "bce_fresh": "bce critic, fresh curves",
    "mlp": "MLP",
    "knn": "kNN",
    "tree": "decision tree",
}
METRICS = {
    "seen_accuracy": "the fixed set itself",
    "training_accuracy": "an epoch's curves, before its last step",
    "fresh_accuracy": "curves drawn anew",
}
# Mean and standard deviation over 10 sets, of accuracy on the set itself; for critics that see fresh curves
# of one run, before the last step of an epoch.
PUBLISHED: dict[PointsName, dict[str, tuple[float, float | None]]] = {
    "normal": {
        "wgan": (0.616, 0.054),
        "bce_fresh": (0.95, None),
        "mlp": (0.933, 0.008),
        "knn": (0.823, 0.006),
        "tree": (1.0, 0.0),
    },
    "grid": {
        "wgan": (0.707, 0.033),
        "bce_fresh": (0.98, None),
        "mlp": (0.960, 0.007),
        "knn": (0.865, 0.004),
        "tree": (1.0, 0.0),
    },
}


def rows(results: xr.Dataset) -> list[dict[str, Any]]:
    """The rows of `summary.json`: shares of curves and areas under the curve, those that were measured."""
    summary = []
    for kind in results.points.values:
        for name in results.classifier.values:
            one = results.sel(points=kind, classifier=name)
            metrics = {str(m): one[m].values for m in one if np.isfinite(one[m].values).any()}
            summary += reporting.summary_rows(f"fixed_set: {kind}, {CLASSIFIERS[name]}", metrics, kind="part")
    return summary


def figures(results: xr.Dataset) -> dict[str, Figure]:
    """The accuracy of every classifier on curves that it was trained on and on others."""
    kinds = results.points.values
    figure, every = plt.subplots(
        1, len(kinds), figsize=(7.5 * len(kinds), 5.5), layout="constrained", sharey=True, squeeze=False
    )
    for axes, kind in zip(every[0], kinds, strict=True):
        _panel(axes, kind, results.sel(points=kind))
    every[0, 0].set_ylabel("accuracy, share of curves")
    handles, labels = every[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize="small")
    figure.suptitle("Functions or untrained networks: classifiers trained on a fixed set of 1,000 curves")
    reporting.footnote(figure, f"mean and 95 % interval over {results.sizes['seed']} sets, dots: the sets")
    return {"fixed_set": figure}


def _panel(axes: Axes, kind: PointsName, one: xr.Dataset) -> None:
    names = [str(name) for name in one.classifier.values]
    for i, (metric, label) in enumerate(METRICS.items()):
        values = one[metric].values
        if metric == "training_accuracy":
            # Of a critic on the fixed set it tells no more than the accuracy on the set.
            values = np.where(one.classifier.values[:, None] == "bce_fresh", values, np.nan)
        x = np.arange(len(names)) + (0.15 if metric == "fresh_accuracy" else -0.15)
        mean, low, high, _ = np.array([reporting.interval(of_seeds) for of_seeds in values]).T
        error = np.array([mean - low, high - mean])
        axes.errorbar(x, mean, error, fmt="o", color=f"C{i}", capsize=4, label=f"on {label}")
        axes.plot(x[:, None] + 0.1, values, ".", color=f"C{i}", markersize=3, alpha=0.6)
    for name, (mean, deviation) in PUBLISHED[kind].items():
        if name in names:
            x, label = (
                names.index(name) - 0.3,
                None if name != "wgan" else "published, ± 1 sd over 10 sets",
            )
            axes.errorbar(x, mean, deviation, fmt="kx", capsize=2, elinewidth=0.8, label=label)
    axes.axhline(0.5, color="0.5", linestyle=":", linewidth=1, label="chance")
    axes.set_xticks(range(len(names)), [CLASSIFIERS[name].replace(", ", ",\n") for name in names])
    axes.set(title=KINDS[kind], xlabel="classifier", ylim=(0.45, 1.02))
    axes.grid(axis="y", alpha=0.3)
