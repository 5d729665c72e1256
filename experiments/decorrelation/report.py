"""The tables and the figures of the decorrelation experiment."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import harness

NOTEBOOK = {
    "alone": "decorrelation alone",
    "one_layer": "one decorrelated layer",
    "two_layers": "two decorrelated layers",
    "two_layers_fixed": "two layers, R held at the identity",
}
PUBLISHED = {
    "alone": [106.560814, 92.458618, 67.835510, 49.946434, 37.211742, 27.915833, 20.952473, 15.865977,
              12.110641, 9.355850, 7.313002],
    "one_layer": [106.638420, 92.378510, 67.550423, 50.074562, 37.256287, 27.816923, 20.886711, 15.840314,
                  12.159686, 9.431981, 7.337277],
    "two_layers_fixed": [111.116158, 110.478119, 110.325562, 110.372955, 110.450310, 110.519104, 110.553780,
                         110.941040, 110.781067, 111.277313, 111.346657, 111.523827, 112.008949],
}  # fmt: skip
"""Decorrelation losses that the notebook prints, summed over the batches of an epoch. It names the last of
these a run with R learned at 1e-5."""
COLUMNS = (
    "rate", "test accuracy", "loss", "correlation left", "largest R", "ms / update",
    "updates to plain's end", "seconds to plain's end",
)  # fmt: skip


def best_rate(one: xr.Dataset) -> xr.Dataset:
    """A run at the learning rate with the best mean accuracy on the validation images at the end."""
    finished = one.isel(step=np.flatnonzero(np.isfinite(one.updates.values)))
    finished = finished.isel(rate=np.flatnonzero(np.isfinite(finished.learning_rate.values)))
    final = np.nan_to_num(finished.validation_accuracy.isel(step=-1).mean("seed").values, nan=-1.0)
    return finished.isel(rate=int(final.argmax()))


def runs_in(results: xr.Dataset, study: str) -> dict[str, xr.Dataset]:
    """The runs of a study, each at its best learning rate."""
    names = results.run.values[results.study.values == study]
    return {str(name): best_rate(results.sel(run=name)) for name in names}


def elapsed(one: xr.Dataset) -> np.ndarray:
    """Seconds of one seed up to every measurement."""
    return np.cumsum(np.concatenate([[0], one.seconds.values[1:]]))


def updates_of(one: xr.Dataset) -> np.ndarray:
    """Updates up to every measurement: step 0 is without learning."""
    return one.updates.values


def first_reaching(x: np.ndarray, accuracy: np.ndarray, level: float) -> float:
    """Where the mean over seeds of an accuracy `[seed, x]` first reaches a level; NaN if nowhere."""
    reached = np.flatnonzero(accuracy.mean(axis=0) >= level)
    return float(x[reached[0]]) if reached.size else float("nan")


def rows(results: xr.Dataset) -> list[dict[str, Any]]:
    """The rows of `summary.json`: values at the end, at the best learning rate; the notebook's by epoch."""
    summary = []
    for study in ("notebook", "gain", "choices"):
        runs = runs_in(results, study)
        for name, one in runs.items():
            last = one.isel(step=-1)
            metrics = {
                "test_accuracy": last.test_accuracy.values,
                "loss": last.loss.values,
                "correlation": last.correlation.sum("layer").values,
                "largest_r": last.largest_r.values,
            }
            found = harness.summary_rows(name, metrics, kind="run")
            found.append(_number(name, "learning_rate", float(one.learning_rate)))
            per_update = np.median(one.seconds.values[1:]) / np.diff(updates_of(one))[0]
            found.append(_number(name, "ms_per_update", 1e3 * per_update))
            plain = runs.get(name.replace("-decorrelated", "-plain"))
            if plain is not None and name.endswith("-decorrelated"):
                level = float(plain.test_accuracy.isel(step=-1).mean())
                for what, x in {"updates": updates_of, "seconds": elapsed}.items():
                    needed = first_reaching(x(one), one.test_accuracy.values, level)
                    needed_plain = first_reaching(x(plain), plain.test_accuracy.values, level)
                    found.append(_number(name, f"{what}_share_of_plain", needed / needed_plain))
            if study == "notebook":
                found += _by_epoch(name, one)
            summary += [{"study": study, **row} for row in found]
    return summary


def _number(run: str, metric: str, value: float) -> dict[str, Any]:
    return {
        "run": run,
        "metric": metric,
        "mean": None if np.isnan(value) else value,
        "ci95": [None] * 2,
        "n": 1,
    }


def _by_epoch(name: str, one: xr.Dataset) -> list[dict[str, Any]]:
    """What the notebook prints: the loss summed over batches, by one less than their number, and the sum of
    the decorrelation losses.
    """
    found = []
    batches = float(np.diff(updates_of(one))[0])
    sums = {
        "bp_loss": one.loss.values * batches / max(batches - 1, 1),
        "decorrelation_loss": one.decorrelation_loss.sum("layer").values * batches,
    }
    for metric, values in sums.items():
        for epoch, of_seeds in enumerate(values.T):
            (row,) = harness.summary_rows(name, {metric: of_seeds}, kind="run")
            found.append({**row, "epoch": epoch, "seconds": float(one.seconds.values[epoch])})
    return found


def table(summary: list[dict[str, Any]]) -> str:
    """The printed tables: the notebook's columns, and all runs at the end."""
    return "\n\n".join(filter(None, (_notebook_table(summary), _end_table(summary))))


def _notebook_table(summary: list[dict[str, Any]]) -> str:
    by_epoch = [row for row in summary if "epoch" in row]
    names = list(dict.fromkeys(row["run"] for row in by_epoch))
    cells = {(row["run"], row["metric"], row["epoch"]): _with_interval(row) for row in by_epoch}
    lines = []
    for epoch in sorted({row["epoch"] for row in by_epoch}):
        lines.append([str(epoch)])
        for name in names:
            lines[-1] += [cells.get((name, m, epoch), "") for m in ("bp_loss", "decorrelation_loss")]
    header = [f"{NOTEBOOK[name]}: {what}" for name in names for what in ("loss", "decorrelation")]
    return harness.table(["epoch", *header], lines) if names else ""


def _end_table(summary: list[dict[str, Any]]) -> str:
    cells: dict[str, dict[str, dict[str, Any]]] = {}
    for row in summary:
        if "epoch" not in row:
            cells.setdefault(row["run"], {})[row["metric"]] = row
    lines = []
    for name, of in cells.items():
        shares = [of.get(f"{what}_share_of_plain") for what in ("updates", "seconds")]
        lines.append([
            NOTEBOOK.get(name, name), f"{of['learning_rate']['mean']:g}",
            *(_with_interval(of[m]) for m in ("test_accuracy", "loss", "correlation", "largest_r")),
            f"{of['ms_per_update']['mean']:.2f}",
            *("" if share is None else _share(share) for share in shares),
        ])  # fmt: skip
    return harness.table(["run", *COLUMNS], lines)


def _share(row: dict[str, Any]) -> str:
    return "not reached" if row["mean"] is None else f"{row['mean']:.2f} x"


def _with_interval(row: dict[str, Any]) -> str:
    mean, (low, high) = row["mean"], row["ci95"]
    if mean is None:
        return "-"
    return f"{mean:.3g}" if low is None else f"{mean:.3g} ± {(high - low) / 2:.1g}"


def figures(results: xr.Dataset, out: Path) -> None:
    """Draws all figures into the folder, as PNG."""
    drawn: dict[str, Callable[[xr.Dataset], Figure | None]] = {
        "notebook": notebook,
        "moments": moments,
        "gain": gain,
        "choices": choices,
    }
    for name, draw in drawn.items():
        figure = draw(results)
        if figure is not None:
            harness.write_whole(out / f"{name}.png", lambda p, f=figure: f.savefig(p, format="png", dpi=150))
            plt.close(figure)


def _band(axes: Axes, x: np.ndarray, of_seeds: np.ndarray, **style: Any) -> None:
    """The mean over seeds `[seed, x]` as a line, and its 95 % interval as a band."""
    mean, low, high, _ = np.array([harness.interval(column) for column in of_seeds.T]).T
    (line,) = axes.plot(x, mean, **style)
    axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def _footnote(results: xr.Dataset) -> str:
    return f"mean and 95 % interval over {results.sizes['seed']} seeds"


def notebook(results: xr.Dataset) -> Figure | None:
    """Loss and decorrelation loss of the notebook's runs by epoch, with what it prints."""
    runs = runs_in(results, "notebook")
    if not runs:
        return None
    figure, (loss, decorrelation) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    for i, (name, one) in enumerate(runs.items()):
        epochs, batches = np.arange(one.sizes["step"]), float(np.diff(updates_of(one))[0])
        if name != "alone":
            _band(loss, epochs, one.loss.values, color=f"C{i}", label=NOTEBOOK[name])
        total = one.decorrelation_loss.sum("layer").values * batches
        _band(decorrelation, epochs, total, color=f"C{i}", label=NOTEBOOK[name])
        printed = PUBLISHED.get(name, [])
        label = "printed by the notebook" if name == "alone" else None
        decorrelation.plot(range(len(printed)), printed, "kx", markersize=5, label=label)
    loss.set(title="Loss", xlabel="epoch", ylabel="cross-entropy in nats")
    decorrelation.set(
        title="Decorrelation loss", xlabel="epoch", ylabel="summed over layers and batches", yscale="log"
    )
    for axes in (loss, decorrelation):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small")
    figure.suptitle("The notebook's runs on 1,000 images")
    figure.supxlabel(_footnote(results), fontsize="small", color="0.4")
    return figure


def moments(results: xr.Dataset) -> Figure | None:
    """Second moments of the pixels before and after decorrelation."""
    runs = runs_in(results, "notebook")
    if not runs:
        return None
    figure, every = plt.subplots(
        2, len(runs), figsize=(3.9 * len(runs), 7.4), layout="constrained", squeeze=False
    )
    for (name, one), column in zip(runs.items(), every.T, strict=True):
        for axes, when in zip(column, ("before", "after"), strict=True):
            matrix = one[f"moments_{when}"].values
            limit = float(np.abs(matrix).max())
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
    figure, every = plt.subplots(
        len(networks), 2, figsize=(14, 4.8 * len(networks)), layout="constrained", squeeze=False
    )
    for name, one in runs.items():
        network, rule, kind = name.split("-")
        style = {
            "color": f"C{rules.index(rule)}",
            "linestyle": "-" if kind == "decorrelated" else "--",
            "label": f"{rule.replace('_', ' ')}, {kind}",
        }
        for axes, x in zip(every[networks.index(network)], (updates_of(one), elapsed(one)), strict=True):
            _band(axes, x, one.test_accuracy.values, **style)
    for network, line in zip(networks, every, strict=True):
        for axes, unit in zip(line, ("updates", "seconds of one seed, compilation apart"), strict=True):
            axes.set(title=f"{network} network", xlabel=unit, ylabel="accuracy on test images", ylim=(0, 1))
            axes.grid(alpha=0.3)
    handles, labels = every[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize="small")
    figure.suptitle("Rules on plain and on decorrelated inputs, each at its best learning rate")
    figure.supxlabel(_footnote(results), fontsize="small", color="0.4")
    return figure


def choices(results: xr.Dataset) -> Figure | None:
    """Accuracy and decorrelation loss under choices of the rule for R."""
    runs = runs_in(results, "choices")
    if not runs:
        return None
    figure, (accuracy, decorrelation, largest) = plt.subplots(1, 3, figsize=(17, 5), layout="constrained")
    for name, one in runs.items():
        x, label = updates_of(one), name.replace("_", " ")
        _band(accuracy, x, one.test_accuracy.values, label=label)
        _band(decorrelation, x, one.correlation.sum("layer").values, label=label)
        _band(largest, x, one.largest_r.values, label=label)
    accuracy.set(title="Accuracy", ylabel="accuracy on test images")
    decorrelation.set(
        title="Correlation left on test images", ylabel="sum C_off^2 / size^2, over layers", yscale="log"
    )
    largest.set(title="Largest entry of R", ylabel="absolute value")
    for axes in (accuracy, decorrelation, largest):
        axes.set_xlabel("updates")
        axes.grid(alpha=0.3)
    accuracy.legend(frameon=False, fontsize="small")
    figure.suptitle("Backprop, dense network: choices of the rule for R")
    figure.supxlabel(_footnote(results), fontsize="small", color="0.4")
    return figure
