"""Report of critics and standard classifiers on a fixed set of curves, beside what was published."""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from experiments import reporting
from experiments.symbolic_discriminator.points import PointsName
from experiments.symbolic_discriminator.study import Figures, Rows

KINDS: dict[PointsName, str] = {
    "normal": "100 draws from N(0, 1)", "grid": "100 points of a grid over -3 to 3",
}  # fmt: skip
CLASSIFIERS = {
    "wgan": "wgan critic", "bce": "bce critic", "bce_fresh": "bce critic, fresh curves",
    "mlp": "MLP", "knn": "kNN", "tree": "decision tree",
}  # fmt: skip
# Mean and standard deviation over 10 sets, of accuracy on the set itself; for critics that see fresh curves
# of one run, before the last step of an epoch.
PUBLISHED: dict[PointsName, dict[str, tuple[float, float | None]]] = {
    "normal": {"wgan": (0.616, 0.054), "bce_fresh": (0.95, None), "mlp": (0.933, 0.008),
               "knn": (0.823, 0.006), "tree": (1.0, 0.0)},
    "grid": {"wgan": (0.707, 0.033), "bce_fresh": (0.98, None), "mlp": (0.960, 0.007),
             "knn": (0.865, 0.004), "tree": (1.0, 0.0)},
}  # fmt: skip


def rows(results: xr.Dataset) -> Rows:
    """Shares of curves and areas under the curve, those that were measured, and what was published."""
    summary = []
    for kind in results.points.values:
        for name in results.classifier.values:
            one = results.sel(points=kind, classifier=name)
            metrics = {str(m): one[m].values for m in one if np.isfinite(one[m].values).any()}
            if name in PUBLISHED[kind]:
                metrics["published_accuracy"] = np.array(PUBLISHED[kind][name][0])
            summary += reporting.summary_rows(f"fixed_set: {kind}, {CLASSIFIERS[name]}", metrics, kind="part")
    return summary


def figures(results: xr.Dataset) -> Figures:
    """The accuracy of every classifier on curves that it was trained on and on others."""
    figure, every = plt.subplots(1, len(KINDS), figsize=(15, 5.5), sharey=True)
    for axes, kind in zip(every, results.points.values, strict=True):
        _panel(axes, kind, results.sel(points=kind))
    every[0].set_ylabel("accuracy, share of curves")
    reporting.legend_beside(figure, every[0])
    title = "Functions or untrained networks: classifiers trained on a fixed set of 1,000 curves"
    note = ", each with its own set; dots: the sets"
    return {"fixed_set": reporting.completed(figure, results, title, note, grid=())}


def _panel(axes: Axes, kind: PointsName, one: xr.Dataset) -> None:
    names = one.classifier.values.tolist()
    # Of a critic on the fixed set, accuracy in training tells no more than that on the set.
    training = one.training_accuracy.where(one.classifier == "bce_fresh")
    shown = {
        "on the fixed set itself": one.seen_accuracy,
        "on an epoch's curves, before its last step": training,
        "on curves drawn anew": one.fresh_accuracy,
    }
    for i, (label, values) in enumerate(shown.items()):
        x = np.arange(len(names)) + (0.15 if "anew" in label else -0.15)
        reporting.bars(axes, x, values.values, color=f"C{i}", capsize=4, label=label)
        axes.plot(x[:, None] + 0.1, values.values, ".", color=f"C{i}", markersize=3, alpha=0.6)
    for name, (mean, deviation) in PUBLISHED[kind].items():
        label = "published, ± 1 sd over 10 sets" if name == "wgan" else None
        place = names.index(name) - 0.3
        axes.errorbar(place, mean, deviation, fmt="kx", capsize=2, elinewidth=0.8, label=label)
    axes.axhline(0.5, color="0.5", linestyle=":", linewidth=1, label="chance")
    axes.set_xticks(range(len(names)), [CLASSIFIERS[name].replace(", ", ",\n") for name in names])
    axes.set(title=KINDS[kind], xlabel="classifier", ylim=(0.45, 1.02))
    axes.grid(axis="y", alpha=0.3)
