"""The figures of the decorrelation experiment."""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from experiments import reporting
from experiments.decorrelation.reading import NOTEBOOK, PUBLISHED, elapsed, over_layers, runs_in, updates_of


def figures(results: xr.Dataset) -> dict[str, Figure]:
    """Draws the figures of all studies that were run."""
    return reporting.drawn((notebook, moments, gain, choices), results)


def notebook(results: xr.Dataset) -> Figure | None:
    """Loss and decorrelation loss of the notebook's runs by epoch, with what it prints."""
    runs = runs_in(results, "notebook")
    if not runs:
        return None
    figure, (loss, decorrelation) = plt.subplots(1, 2, figsize=(13, 5))
    for i, (name, one) in enumerate(runs.items()):
        epochs, batches = np.arange(one.sizes["step"]), float(np.diff(updates_of(one))[0])
        if name != "alone":
            reporting.band(loss, epochs, one.loss.values, color=f"C{i}", label=NOTEBOOK[name])
        total = over_layers(one.decorrelation_loss).values * batches
        reporting.band(decorrelation, epochs, total, color=f"C{i}", label=NOTEBOOK[name])
        printed = PUBLISHED.get(name, [])
        label = "printed by the notebook" if name == "alone" else None
        decorrelation.plot(range(len(printed)), printed, "kx", markersize=5, label=label)
    loss.set(title="Loss", xlabel="epoch", ylabel="cross-entropy in nats")
    decorrelation.set(title="Decorrelation loss", xlabel="epoch", ylabel="summed over layers and batches")
    decorrelation.set_yscale("log")
    for axes in (loss, decorrelation):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize="small")
    return reporting.completed(figure, results, "The notebook's runs on 1,000 images")


def moments(results: xr.Dataset) -> Figure | None:
    """Second moments of the pixels before and after decorrelation."""
    runs = runs_in(results, "notebook")
    if not runs:
        return None
    figure, every = plt.subplots(2, len(runs), figsize=(3.9 * len(runs), 7.4), squeeze=False)
    for (name, one), column in zip(runs.items(), every.T, strict=True):
        limit = float(np.nanmax(np.abs(one.moments_before.values)))
        for axes, when in zip(column, ("before", "after"), strict=True):
            matrix = reporting.drawable(one[f"moments_{when}"].values)
            image = axes.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
            figure.colorbar(image, ax=axes, shrink=0.75)
            axes.set(title=f"{NOTEBOOK[name]}: {when}", xticks=(), yticks=())
            axes.title.set_fontsize(9)
    figure.suptitle("Second moments of the 14 x 14 pixels in the centre, first seed, test images")
    return figure


def gain(results: xr.Dataset) -> Figure | None:
    """Accuracy of every rule against updates and against seconds, on plain and on decorrelated inputs."""
    runs = runs_in(results, "gain")
    if not runs:
        return None
    networks = list(dict.fromkeys(name.split("-")[0] for name in runs))
    rules = list(dict.fromkeys(name.split("-")[1] for name in runs))
    figure, every = plt.subplots(len(networks), 2, figsize=(14, 4.8 * len(networks)), squeeze=False)
    for name, one in runs.items():
        network, rule, kind = name.split("-")
        style = {
            "color": f"C{rules.index(rule)}",
            "linestyle": {"plain": "--", "decorrelated": "-", "every_8th": ":"}[kind],
            "label": f"{rule.replace('_', ' ')}, {kind.replace('_', ' ')}",
        }
        for axes, x in zip(every[networks.index(network)], (updates_of(one), elapsed(one)), strict=True):
            reporting.band(axes, x, one.test_accuracy.values, **style)
    for network, line in zip(networks, every, strict=True):
        for axes, unit in zip(line, ("updates", "seconds of one seed, compilation apart"), strict=True):
            axes.set(title=f"{network} network", xlabel=unit, ylabel="accuracy on test images", ylim=(0, 1))
    reporting.legend_beside(figure, every[0, 0])
    title = "Rules on plain and on decorrelated inputs, each at its best learning rate"
    return reporting.completed(figure, results, title)


def choices(results: xr.Dataset) -> Figure | None:
    """Accuracy, correlations left in the pixels and the size of R under choices of the rule for it."""
    runs = runs_in(results, "choices")
    if not runs:
        return None
    figure, (accuracy, left, largest) = plt.subplots(1, 3, figsize=(17, 5))
    for i, (name, one) in enumerate(runs.items()):
        x, label = updates_of(one), name.replace("_", " ")
        reporting.band(accuracy, x[1:], one.test_accuracy.values[:, 1:], label=label)
        pixels = one.correlation.isel(step=-1, layer=0).values
        mean = reporting.bars(left, [label], [pixels], "x", fmt="none", color="black", capsize=0)
        left.barh([label], mean, color=f"C{i}")
        reporting.band(largest, x, one.largest_r.values, label=label)
    accuracy.set(title="Accuracy", ylabel="accuracy on test images")
    left.set(title="Correlation left in the pixels", xlabel="sum C_off^2 / size^2", xscale="log")
    left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    left.xaxis.set_minor_formatter(NullFormatter())
    left.invert_yaxis()
    largest.set(title="Largest entry of R", ylabel="absolute value")
    accuracy.set_xlabel("updates")
    largest.set_xlabel("updates")
    accuracy.legend(frameon=False, fontsize="small")
    title = "Backprop, dense network: choices of the rule for R"
    return reporting.completed(figure, results, title, grid=(accuracy, largest))
