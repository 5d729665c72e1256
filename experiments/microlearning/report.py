"""Table and figures of the microlearning experiment."""

import json
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from experiments import reporting
from experiments.microlearning.config import DEFAULT_RULES

LABELS = {name: name.replace("_", " ").replace("symmetry ", "symmetry, ") for name in DEFAULT_RULES}
LABELS["kolen_pollack"] = "Kolen-Pollack"
COLOURS = (*plt.get_cmap("tab10").colors, *plt.get_cmap("Dark2").colors)  # type: ignore[attr-defined]
MARKERS, LINES = "osD^v<>P*X", ("-", "--", "-.", ":", "--", "-.", ":", "-", "--", ":")
VARIABLES = {
    "rule": ("1", "rule"),
    "step": ("1", "updates"),
    "evaluation": ("1", "updates before the evaluation"),
    "epoch": ("1", "epoch"),
    "layer": ("1", "layer of weights, or all of them"),
    "loss": ("1", "loss of an example in the units of --network, mean over a batch"),
    "test_loss": ("1", "loss of an example in the units of --network, mean over test images"),
    "cosine": ("1", "cosine of the rule's update to backprop's, on test images"),
    "angle_degrees": ("degree", "angle between the rule's update and backprop's, on test images"),
    "snr": ("1", "signal-to-noise ratio of gradients over examples, debiased"),
    "snr_tutorial": ("1", "signal-to-noise ratio of gradients over examples, as in the tutorial"),
    "relative_bias": ("1", "squared bias of the gradient, relative to the squared gradient"),
    "relative_variance": ("1", "variance of the gradient over draws, relative to the squared gradient"),
    "seconds_per_update": ("s", "time per update of one seed"),
}
COLUMNS = {
    "test_accuracy": "accuracy",
    "train_loss": "loss",
    "snr_tutorial": "SNR (tutorial)",
    "snr": "SNR",
    "cosine": "cosine",
    "angle_degrees": "angle (deg)",
    "relative_bias": "bias², rel.",
    "relative_variance": "variance, rel.",
    "seconds_per_update": "ms / update",
}
FACTORS = {"seconds_per_update": 1e3}
OF_GRADIENTS = ("snr_tutorial", "snr", "cosine", "angle_degrees", "relative_bias", "relative_variance")


def rows(results: xr.Dataset) -> list[dict[str, Any]]:
    """Returns the rows of `summary.json`.

    Accuracy, loss (mean over the last epoch), cosine and angle are final values; SNR, bias and variance are
    measured at initialisation. Metrics of the gradient are for the first layer, whose errors depend on credit
    assignment; those with the suffix `_all_layers` are for the whole gradient.
    """
    summary = []
    for name in results.rule.values:
        one = results.sel(rule=name)
        per_epoch = one.sizes["step"] // one.sizes["epoch"]
        last = one.isel(evaluation=-1)
        metrics = {
            "test_accuracy": last.test_accuracy,
            "train_loss": one.loss.isel(step=slice(-per_epoch, None)).mean("step", skipna=False),
            "seconds_per_update": one.seconds_per_update,
        }
        for metric in OF_GRADIENTS:
            metrics[metric] = last[metric].isel(layer=0)
            metrics[f"{metric}_all_layers"] = last[metric].sel(layer="total")
        summary += reporting.summary_rows(str(name), {k: v.values for k, v in metrics.items()})
    return summary


def table(summary: list[dict[str, Any]]) -> str:
    """Returns the printed table: means and half-widths of 95 % intervals over seeds."""
    lines = [
        [LABELS.get(rule, rule), *(reporting.cell(of[c], factor=FACTORS.get(c, 1.0)) for c in COLUMNS)]
        for (rule,), of in reporting.by_part(summary, "rule").items()
    ]
    note = "mean ± half the 95 % interval over seeds; columns SNR to variance are for the first layer"
    return reporting.table(["rule", *COLUMNS.values()], lines) + f"\n\n{note}"


def figures(results: xr.Dataset) -> dict[str, Figure]:
    """Draws all figures."""
    return reporting.drawn((losses, accuracy, snr, cosine, bias_variance), results)


def _style(results: xr.Dataset, name: str) -> dict[str, Any]:
    """Returns the colour, dashes and label of a rule; custom rules come last."""
    i = list(dict.fromkeys((*LABELS, *results.rule.values))).index(name)
    dashes = LINES[i % len(LINES)]
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": dashes, "label": LABELS.get(name, name)}


def _lines(results: xr.Dataset, x: np.ndarray, values: Callable[[xr.Dataset], np.ndarray]) -> Axes:
    """Draws one line per rule, the mean of `values` [seed, x] over seeds, with its 95 % interval."""
    axes = plt.subplots(figsize=(9, 5))[1]
    for name in results.rule.values:
        reporting.band(axes, x, values(results.sel(rule=name)), **_style(results, name))
    return axes


def _finish(axes: Axes, results: xr.Dataset, title: str, xlabel: str, ylabel: str) -> Figure:
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure: Any = axes.figure
    return reporting.completed(figure, results)


def losses(results: xr.Dataset) -> Figure:
    """Training loss, averaged over a hundredth of the run."""
    width = max(1, results.sizes["step"] // 100)
    bins = results.sizes["step"] // width
    x = (np.arange(bins) + 0.5) * width
    axes = _lines(results, x, lambda o: o.loss.values[:, : bins * width].reshape(-1, bins, width).mean(2))
    axes.set_yscale("log")
    limits = axes.get_ylim()
    axes.set_yticks([0.1, 0.2, 0.3, 0.5, 1, 2, 3])
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    if limits[0] > 0:
        axes.set_ylim(limits)
    return _finish(axes, results, "Training loss", "updates", "mean loss per example")


def accuracy(results: xr.Dataset) -> Figure:
    """Accuracy on the test images."""
    axes = _lines(results, results.evaluation.values, lambda one: one.test_accuracy.values)
    axes.axhline(0.1, color="0.5", linewidth=0.8, linestyle=(0, (1, 3)))
    of_height = axes.get_yaxis_transform()
    axes.text(0.99, 0.1, "chance", ha="right", va="bottom", color="0.4", transform=of_height)
    axes.set_ylim(0, 1)
    return _finish(axes, results, "Accuracy on the test images", "updates", "accuracy")


def cosine(results: xr.Dataset) -> Figure:
    """Cosine of the first layer's update to backprop's, on the test images."""
    axes = _lines(results, results.evaluation.values, lambda one: one.cosine.isel(layer=0).values)
    axes.axhline(0, color="0.5", linewidth=0.8)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -1.05), min(high, 1.05))  # intervals over two seeds may exceed -1..1
    return _finish(axes, results, "Cosine of the first layer's update to backprop's", "updates", "cosine")


def snr(results: xr.Dataset) -> Figure:
    """SNR of the first layer at initialisation, debiased and as in the tutorial."""
    names = [str(name) for name in results.rule.values]
    figure, both = plt.subplots(1, 2, figsize=(11, 5), sharey=True)
    titles = {"snr": "debiased: |E g|² / tr Cov g", "snr_tutorial": "tutorial: mean |m| / (s + 0.001)"}
    for axes, (metric, title) in zip(both, titles.items(), strict=True):
        values = [results[metric].sel(rule=n).isel(layer=0).values for n in names]
        mean = reporting.bars(axes, range(len(names)), values, "x", fmt="none", ecolor="0.2")
        axes.barh(range(len(names)), mean, color=[_style(results, n)["color"] for n in names])
        axes.set(title=title, xlabel="signal-to-noise ratio")
        axes.grid(axis="x", alpha=0.3)
    both[0].set_yticks(range(len(names)), [LABELS.get(n, n) for n in names])
    both[0].set_ylim(len(names) - 0.4, -1.0)
    both[0].set_xscale("symlog", linthresh=1e-4)
    both[0].set_xlim(left=-1e-4)
    count = json.loads(results.attrs["config"])["snr_images"]
    both[1].axvline(np.sqrt(2 / (np.pi * count)), color="0.3", linestyle=":")
    style = {"ha": "right", "va": "center", "color": "0.3", "transform": both[1].get_yaxis_transform()}
    both[1].text(0.98, -0.7, f"pure noise over {count} examples", **style)
    title = "Gradient SNR of the first layer across examples, at initialisation"
    return reporting.completed(figure, results, title, grid=())


def bias_variance(results: xr.Dataset) -> Figure:
    """Squared bias against variance of the whole gradient at initialisation, one point per rule."""
    axes, total, floor = plt.subplots(figsize=(9, 5.5))[1], results.sel(layer="total"), 1e-6
    for i, name in enumerate(dict.fromkeys((*LABELS, *results.rule.values))):
        if name not in results.rule.values:
            continue
        one = total.sel(rule=name)
        points = []
        for metric in ("relative_variance", "relative_bias"):
            mean, low, high, _ = reporting.interval(reporting.drawable(one[metric].values))
            centre, low, high = (max(v, floor) for v in (mean, low, high))
            points.append((centre, [[centre - low], [high - centre]]))
        (x, xerr), (y, yerr) = points
        axes.errorbar(
            x, y, yerr, xerr, marker=MARKERS[i % len(MARKERS)], capsize=3, markersize=9,
            markerfacecolor="none", markeredgewidth=1.6, **{**_style(results, name), "linestyle": "none"},
        )  # fmt: skip
    axes.set(xscale="log", yscale="log")
    note = f" values below {floor:g} (including zero and negative estimates) are drawn at {floor:g}"
    axes.text(0.01, 0.01, note, transform=axes.transAxes, color="0.4")
    title = "Bias against variance of the gradient estimate at initialisation, all layers"
    x, y = "variance over draws, tr Cov g / |gradient|²", "squared bias, |E g - gradient|² / |gradient|²"
    return _finish(axes, results, title, x, y)
