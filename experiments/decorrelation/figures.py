"""Figures of the decorrelation experiment, and helpers to read its results."""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from experiments import reporting

NOTEBOOK = {
    "alone": "decorrelation alone",
    "one_layer": "one decorrelated layer",
    "two_layers": "two decorrelated layers",
    "two_layers_fixed": "two layers, R fixed at the identity",
}
PUBLISHED = {
    "alone": [106.560814, 92.458618, 67.835510, 49.946434, 37.211742, 27.915833, 20.952473, 15.865977,
              12.110641, 9.355850, 7.313002],
    "one_layer": [106.638420, 92.378510, 67.550423, 50.074562, 37.256287, 27.816923, 20.886711, 15.840314,
                  12.159686, 9.431981, 7.337277],
    "two_layers_fixed": [111.116158, 110.478119, 110.325562, 110.372955, 110.450310, 110.519104, 110.553780,
                         110.941040, 110.781067, 111.277313, 111.346657, 111.523827, 112.008949],
}  # fmt: skip
"""Decorrelation losses printed by the notebook, summed over the batches of an epoch. The notebook describes
the last run as one with R learned at 1e-5."""


def best_rate(one: xr.Dataset) -> xr.Dataset:
    """Selects the learning rate of a run with the best final mean accuracy on the validation images."""
    finished = one.isel(step=np.flatnonzero(np.isfinite(one.updates.values)))
    finished = finished.isel(rate=np.flatnonzero(np.isfinite(finished.learning_rate.values)))
    accuracy = finished.validation_accuracy.isel(step=-1).mean("seed", skipna=False)
    final = np.nan_to_num(accuracy.values, nan=-1.0)  # a rate at which a seed diverged ranks last
    return finished.isel(rate=int(final.argmax()))


def over_layers(of_layers: xr.DataArray) -> xr.DataArray:
    """Sums over the layers of a network; NaN if any layer is NaN."""
    return of_layers.sum("layer", skipna=False)


def runs_in(results: xr.Dataset, study: str) -> dict[str, xr.Dataset]:
    """Returns the runs of a study, each at its best learning rate."""
    names = results.run.values[results.study.values == study]
    best = {str(name): best_rate(results.sel(run=name)) for name in names}
    return {name: one.isel(layer=slice(0, int(one.num_layers))) for name, one in best.items()}


def elapsed(one: xr.Dataset) -> np.ndarray:
    """Returns the seconds of one seed up to every measurement, at the median time per update."""
    return updates_of(one) * seconds_per_update(one)


def seconds_per_update(one: xr.Dataset) -> float:
    """Returns the median time per update of one seed, without compilation."""
    return float(np.median(one.seconds.values[1:] / np.diff(updates_of(one))))


def updates_of(one: xr.Dataset) -> np.ndarray:
    """Returns the number of updates before every measurement, 0 for the first."""
    return one.updates.values


def first_reaching(x: np.ndarray, accuracy: np.ndarray, level: float) -> float:
    """Returns the first x at which the mean accuracy `[seed, x]` over seeds reaches a level; NaN if none."""
    reached = np.flatnonzero(accuracy.mean(axis=0) >= level)
    return float(x[reached[0]]) if reached.size else float("nan")


def figures(results: xr.Dataset) -> dict[str, Figure]:
    """Draws the figures of all studies that were run."""
    studies = {notebook: "notebook", moments: "notebook", gain: "gain", choices: "choices"}
    runs = {draw: runs_in(results, study) for draw, study in studies.items()}
    return {draw.__name__: draw(results, of_study) for draw, of_study in runs.items() if of_study}


def notebook(results: xr.Dataset, runs: dict[str, xr.Dataset]) -> Figure:
    """Loss and decorrelation loss of the notebook's runs by epoch, with the published values."""
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
    decorrelation.set(title="Decorrelation loss", xlabel="epoch", ylabel="sum over layers and batches")
    decorrelation.set_yscale("log")
    for axes in (loss, decorrelation):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize="small")
    return reporting.completed(figure, results, "The notebook's runs on 1,000 images")


def moments(results: xr.Dataset, runs: dict[str, xr.Dataset]) -> Figure:
    """Second moments of the pixels before and after decorrelation."""
    figure, every = plt.subplots(2, len(runs), figsize=(3.9 * len(runs), 7.4), squeeze=False)
    for (name, one), column in zip(runs.items(), every.T, strict=True):
        limit = float(np.nanmax(np.abs(one.moments_before.values)))
        for axes, when in zip(column, ("before", "after"), strict=True):
            matrix = reporting.drawable(one[f"moments_{when}"].values)
            image = axes.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
            figure.colorbar(image, ax=axes, shrink=0.75)
            axes.set(title=f"{NOTEBOOK[name]}: {when}", xticks=(), yticks=())
            axes.title.set_fontsize(9)
    figure.suptitle("Second moments of the 14 x 14 central pixels, first seed, test images")
    return figure


def gain(results: xr.Dataset, runs: dict[str, xr.Dataset]) -> Figure:
    """Accuracy of every rule against updates and seconds, on plain and decorrelated inputs."""
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
        for axes, unit in zip(line, ("updates", "seconds of one seed, without compilation"), strict=True):
            axes.set(title=f"{network} network", xlabel=unit, ylabel="accuracy on test images", ylim=(0, 1))
    reporting.legend_beside(figure, every[0, 0])
    title = "Rules on plain and decorrelated inputs, each at its best learning rate"
    return reporting.completed(figure, results, title)


def choices(results: xr.Dataset, runs: dict[str, xr.Dataset]) -> Figure:
    """Accuracy, remaining correlation of the pixels, and size of R, for each variant of the update of R."""
    figure, (accuracy, left, largest) = plt.subplots(1, 3, figsize=(17, 5))
    for i, (name, one) in enumerate(runs.items()):
        x, label = updates_of(one), name.replace("_", " ")
        reporting.band(accuracy, x[1:], one.test_accuracy.values[:, 1:], label=label)
        pixels = one.correlation.isel(step=-1, layer=0).values
        mean = reporting.bars(left, [label], [pixels], "x", fmt="none", color="black", capsize=0)
        left.barh([label], mean, color=f"C{i}")
        reporting.band(largest, x, one.largest_r.values, label=label)
    accuracy.set(title="Accuracy", ylabel="accuracy on test images")
    left.set(title="Remaining correlation of the pixels", xlabel="sum C_off^2 / size^2", xscale="log")
    left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    left.xaxis.set_minor_formatter(NullFormatter())
    left.invert_yaxis()
    largest.set(title="Largest entry of R", ylabel="absolute value")
    accuracy.set_xlabel("updates")
    largest.set_xlabel("updates")
    accuracy.legend(frameon=False, fontsize="small")
    title = "Backprop, dense network: variants of the update of R"
    return reporting.completed(figure, results, title, grid=(accuracy, largest))
