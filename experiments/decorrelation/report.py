"""Tables and figures of the decorrelation experiment."""

from typing import Any

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


COLUMNS = {
    "learning_rate": "rate",
    "test_accuracy": "test accuracy",
    "loss": "loss",
    "correlation": "remaining correlation",
    "largest_r": "largest R",
    "ms_per_update": "ms / update",
    "updates_share_of_plain": "updates vs plain",
    "seconds_share_of_plain": "seconds vs plain",
}
FORMS = {"learning_rate": "g", "ms_per_update": ".2f"}
VARIABLES = {
    "run": ("1", "run"),
    "study": ("1", "study of the run"),
    "rate": ("1", "index of the learning rate"),
    "step": ("1", "index of the measurement"),
    "layer": ("1", "index of the layer"),
    "*pixel": ("1", "index of a central pixel"),
    "loss": ("nat", "mean cross-entropy over updates since the last measurement"),
    "decorrelation_loss": ("1", "mean decorrelation loss over updates since the last measurement"),
    "correlation": ("1", "remaining squared correlations of the inputs of a layer"),
    "largest_r": ("1", "largest absolute entry of R"),
    "num_layers": ("1", "number of layers"),
    "updates": ("1", "updates before the measurement"),
    "moments_*": ("1", "second moment of two pixels before or after R"),
    "seconds": ("s", "time of one seed since the last measurement"),
}


def best_rate(one: xr.Dataset) -> xr.Dataset:
    """Selects the learning rate of a run with the best final mean accuracy on the validation images."""
    finished = one.dropna("step", subset=["updates"])
    accuracy = finished.validation_accuracy.isel(step=-1).mean("seed", skipna=False)
    ranked = accuracy.fillna(-1)  # the last are rates at which a seed diverged, or of other runs
    return finished.isel(rate=int(ranked.argmax("rate")))


def over_layers(of_layers: xr.DataArray) -> xr.DataArray:
    """Sums over the layers of a network; NaN if any layer is NaN."""
    return of_layers.sum("layer", skipna=False)


def runs_in(results: xr.Dataset, study: str) -> dict[str, xr.Dataset]:
    """Returns the runs of a study, each at its best learning rate.

    Each has the median `seconds_per_update` of one seed, without compilation, and the seconds `elapsed` up to
    every measurement at that speed.
    """
    found = {}
    for name in results.run.values[results.study.values == study]:
        one = best_rate(results.sel(run=name))
        seconds = np.median(one.seconds.values[1:] / np.diff(one.updates.values))
        times = {"seconds_per_update": float(seconds), "elapsed": one.updates * float(seconds)}
        found[str(name)] = one.isel(layer=slice(0, int(one.num_layers))).assign(times)
    return found


def first_reaching(one: xr.Dataset, x: str, level: float) -> float:
    """Returns the first value of `x` at which the mean test accuracy reaches a level; NaN if none."""
    reached = np.flatnonzero(one.test_accuracy.mean("seed", skipna=False) >= level)
    return float(one[x][reached[0]]) if reached.size else np.nan


def rows(results: xr.Dataset) -> list[dict[str, Any]]:
    """Returns the rows of `summary.json`: final values at the best learning rate; the notebook's by epoch."""
    summary = []
    for study in ("notebook", "gain", "choices"):
        runs = runs_in(results, study)
        for name, one in runs.items():
            last = one.isel(step=-1).assign(correlation=over_layers(one.correlation.isel(step=-1)))
            metrics = {m: last[m].values for m in ("test_accuracy", "loss", "correlation", "largest_r")}
            found = reporting.summary_rows(name, metrics, kind="run")
            numbers = {"learning_rate": one.learning_rate, "ms_per_update": 1e3 * one.seconds_per_update}
            plain = runs.get(f"{name.rpartition('-')[0]}-plain")
            if plain is not None and plain is not one:
                level = float(plain.test_accuracy.isel(step=-1).mean(skipna=False))
                for what, x in {"updates": "updates", "seconds": "elapsed"}.items():
                    needed, of_plain = (first_reaching(each, x, level) for each in (one, plain))
                    share = needed / of_plain if of_plain else np.nan  # plain inputs: no gain
                    numbers[f"{what}_share_of_plain"] = share
            for metric, value in numbers.items():
                mean = float(value) if np.isfinite(value) else None
                found.append({"run": name, "metric": metric, "mean": mean, "ci95": [None] * 2, "n": 1})
            if study == "notebook":
                found += _by_epoch(name, one)
            summary += [{"study": study, **row} for row in found]
    return summary


def _by_epoch(name: str, one: xr.Dataset) -> list[dict[str, Any]]:
    """Returns sums over the batches of an epoch, as in the notebook; the loss is divided by batches - 1."""
    found, batches = [], float(np.diff(one.updates.values)[0])
    sums = {
        "bp_loss": one.loss.values * batches / max(batches - 1, 1),
        "decorrelation_loss": over_layers(one.decorrelation_loss).values * batches,
    }
    for metric, values in sums.items():
        for epoch, of_seeds in enumerate(values.T):
            (row,) = reporting.summary_rows(name, {metric: of_seeds}, kind="run")
            found.append({**row, "epoch": epoch, "seconds": float(one.seconds.values[epoch])})
    return found


def table(summary: list[dict[str, Any]]) -> str:
    """Returns the printed tables: the notebook's values by epoch, and final values of all runs."""
    of_ends = reporting.by_part((row for row in summary if "epoch" not in row), "run")
    lines = [[NOTEBOOK.get(n, n), *(_cell(of, m) for m in COLUMNS)] for (n,), of in of_ends.items()]
    ends = reporting.table(["run", *COLUMNS.values()], lines)
    by_epoch = reporting.by_part((row for row in summary if "epoch" in row), "epoch", "run")
    if not by_epoch:
        return ends
    names = list(dict.fromkeys(name for _, name in by_epoch))
    sums = {"bp_loss": "loss", "decorrelation_loss": "decorrelation"}
    lines = [
        [str(epoch), *(_cell(by_epoch.get((epoch, name), {}), metric) for name in names for metric in sums)]
        for epoch in sorted({epoch for epoch, _ in by_epoch})
    ]
    header = [f"{NOTEBOOK[name]}: {what}" for name in names for what in sums.values()]
    return reporting.table(["epoch", *header], lines) + "\n\n" + ends


def _cell(of: dict[str, Any], metric: str) -> str:
    if metric not in of:
        return ""
    if metric.endswith("_share_of_plain"):
        share = of[metric]["mean"]
        return "not reached" if share is None else f"{share:.2f} x"
    return reporting.cell(of[metric], FORMS.get(metric, ".3g"))


def figures(results: xr.Dataset) -> dict[str, Figure]:
    """Draws the figures of all studies that were run."""
    studies = {notebook: "notebook", moments: "notebook", gain: "gain", choices: "choices"}
    runs = {draw: runs_in(results, study) for draw, study in studies.items()}
    return {draw.__name__: draw(results, of_study) for draw, of_study in runs.items() if of_study}


def notebook(results: xr.Dataset, runs: dict[str, xr.Dataset]) -> Figure:
    """Loss and decorrelation loss of the notebook's runs by epoch, with the published values."""
    figure, (loss, decorrelation) = plt.subplots(1, 2, figsize=(13, 5))
    for i, (name, one) in enumerate(runs.items()):
        epochs, batches = np.arange(one.sizes["step"]), float(np.diff(one.updates.values)[0])
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
        for axes, x in zip(every[networks.index(network)], ("updates", "elapsed"), strict=True):
            reporting.band(axes, one[x].values, one.test_accuracy.values, **style)
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
        x, label = one.updates.values, name.replace("_", " ")
        reporting.band(accuracy, x[1:], one.test_accuracy.values[:, 1:], label=label)
        pixels = one.correlation.isel(step=-1, layer=0).values
        mean = reporting.bars(left, [label], [pixels], "x", fmt="none", color="black", capsize=0)
        left.barh([label], mean, color=f"C{i}")
        reporting.band(largest, x, one.largest_r.values, label=label)
    accuracy.set(title="Accuracy", xlabel="updates", ylabel="accuracy on test images")
    left.set(title="Remaining correlation of the pixels", xlabel="sum C_off^2 / size^2", xscale="log")
    left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    left.xaxis.set_minor_formatter(NullFormatter())
    left.invert_yaxis()
    largest.set(title="Largest entry of R", xlabel="updates", ylabel="absolute value")
    accuracy.legend(frameon=False, fontsize="small")
    title = "Backprop, dense network: variants of the update of R"
    return reporting.completed(figure, results, title, grid=(accuracy, largest))
