"""The figures of the benchmark of gradient quality."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.quality.measures import METRICS
from benchmarks.quality.report import axis_of
from benchmarks.quality.settings import SWEEPS
from experiments import reporting

PANELS = ("cosine", "angle_degrees", "cosine_squared", "relative_bias", "relative_variance", "snr")
FLOORS = {"cosine_squared": 1e-5, "relative_bias": 1e-4, "relative_variance": 1e-4, "snr": 1e-4}
"""Panels with a logarithmic axis, and the value at which those below, zeros too, are drawn."""
_FLOOR_NOTE = "what lies below a logarithmic axis, zero and unresolved values too, is drawn at its end"


def styles(rules: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of every rule."""
    colours = plt.get_cmap("tab20")(np.arange(20))[[*range(0, 20, 2), *range(1, 20, 2)]]
    markers = "osD^v<>P*Xhd8p"
    return {
        rule: {"color": colours[i % 20], "marker": markers[i % len(markers)]} for i, rule in enumerate(rules)
    }


def _label(rule: str) -> str:
    return rule.replace("_", " ")


def sweep_figure(sweep: xr.Dataset, axis: str | None = None) -> Figure:
    """All metrics against what is varied, one panel a metric, one line a rule; dashed: theory.

    Args:
      sweep: with the dimensions rule, an axis, seed and layer; drawn are all layers together.
      axis: "layer" for the layers of a sweep of one value in place of its axis.
    """
    if axis == "layer":
        sweep, label, scale = sweep.isel({axis_of(sweep): 0}), "layer", "names"
    else:
        axis = axis_of(sweep)
        sweep, label, scale = sweep.sel(layer="total"), SWEEPS[axis].label, SWEEPS[axis].scale
    figure, panels = plt.subplots(2, 3, figsize=(15, 8.5), layout="constrained", sharex=True)
    values = sweep[axis].values
    x = np.arange(len(values)) if scale == "names" else values
    for panel, metric in zip(panels.flat, PANELS, strict=True):
        for rule, style in styles(sweep.rule.values).items():
            one = sweep.sel(rule=rule).transpose("seed", axis)
            line = {"linestyle": ":" if scale == "names" else "-", "label": _label(rule)}
            _line(panel, metric, x, one, style | line)
        panel.set(title=METRICS[metric], xscale="linear" if scale == "names" else scale)
        if scale == "names":
            panel.set_xticks(x, [str(v) for v in values])
            panel.set_xlim(-0.4, len(x) - 0.6)
        elif scale == "symlog":
            positive = [v for v in x if v > 0]
            panel.set_xscale("symlog", linthresh=min(positive, default=1))
        _finish_panel(panel, metric)
    for panel in panels[-1]:
        panel.set_xlabel(label)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(f"Gradient quality: {label}")
    seeds = sweep.sizes["seed"]
    reporting.footnote(
        figure, f"mean and range over {seeds} seeds; dashed: theory for small noise; {_FLOOR_NOTE}"
    )
    return figure


def _line(panel: Axes, metric: str, x: np.ndarray, one: xr.Dataset, style: dict[str, Any]) -> None:
    floor = FLOORS.get(metric, -np.inf)
    _band(panel, x, np.maximum(one[metric].values, floor), floor, one[metric].values.mean(axis=0), style)
    if f"theory_{metric}" in one:
        theory = one[f"theory_{metric}"].mean("seed").values
        panel.plot(x, theory, color=style["color"], linestyle=(0, (4, 3)), linewidth=1.0, zorder=5)


def _band(
    axes: Axes, x: np.ndarray, of_seeds: np.ndarray, floor: float, mean: np.ndarray, style: dict[str, Any]
) -> None:
    """The mean over seeds as a line, from the lowest to the highest seed a band; `of_seeds [seed, x]`."""
    axes.plot(x, np.maximum(mean, floor), markersize=5, linewidth=1.3, alpha=0.85, **style)
    axes.fill_between(
        x, of_seeds.min(axis=0), of_seeds.max(axis=0), color=style["color"], alpha=0.12, linewidth=0
    )


def _finish_panel(panel: Axes, metric: str) -> None:
    panel.grid(alpha=0.3)
    if metric in FLOORS:
        panel.set_yscale("log")
        panel.set_ylim(bottom=FLOORS[metric] * 0.7)
    elif metric == "cosine":
        panel.set_ylim(min(-0.05, panel.get_ylim()[0]), 1.05)
    elif metric == "angle_degrees":
        panel.set_yticks(range(0, 181, 30))
        panel.axhline(90, color="0.5", linewidth=0.8)
        panel.set_ylim(-4, None)


def bias_against_variance(baseline: xr.Dataset) -> Figure:
    """One point a rule: squared bias against variance of the whole gradient; contours of equal error."""
    figure, axes = plt.subplots(figsize=(10.5, 6), layout="constrained")
    floor = 1e-3
    total = baseline.isel({axis_of(baseline): 0}).sel(layer="total")
    for rule, style in styles(total.rule.values).items():
        one, points = total.sel(rule=rule), []
        for metric in ("relative_variance", "relative_bias"):
            seeds = np.maximum(one[metric].values, floor)
            centre = max(one[metric].mean().item(), floor)
            spread = [[max(centre - seeds.min(), 0)], [max(seeds.max() - centre, 0)]]
            points.append((centre, spread))
        (x, xerr), (y, yerr) = points
        axes.errorbar(
            x, y, yerr, xerr, fmt=style["marker"], color=style["color"], label=_label(rule), capsize=3,
            markersize=9, markerfacecolor="none", markeredgewidth=1.7, elinewidth=0.9,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log")
    axes.set_xlim(floor * 0.7, max(axes.get_xlim()[1], 10))
    axes.set_ylim(floor * 0.7, max(axes.get_ylim()[1], 10))
    grid = [np.geomspace(*limits, 200) for limits in (axes.get_xlim(), axes.get_ylim())]
    levels = 10.0 ** np.arange(-2, np.log10(axes.get_xlim()[1] + axes.get_ylim()[1]))
    lines = axes.contour(
        *grid, grid[0][None] + grid[1][:, None], levels=levels, colors="0.75", linewidths=0.8
    )
    axes.clabel(lines, fmt=lambda level: f"{level:g}", fontsize="small")
    axes.set(
        title="Bias against variance of the whole gradient",
        xlabel="variance over draws, tr Cov g / |gradient|²",
        ylabel="squared bias, |E g - gradient|² / |gradient|²",
    )
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    reporting.footnote(
        figure,
        f"mean and range over {total.sizes['seed']} seeds; grey: equal mean squared error;"
        f" values below {floor:g}, zero and unresolved ones too, are drawn there",
    )
    return figure


def error_against_compute(sweep: xr.Dataset, flops: Mapping[str, float]) -> Figure:
    """Mean squared error of the whole gradient against the operations of an average of K, one line a rule.

    Dotted: bias + variance / K for larger averages, from the variance at the smallest K and the bias at the
    largest, if its 95 % interval leaves out 0.
    """
    figure, axes = plt.subplots(figsize=(10.5, 6), layout="constrained")
    floor = 1e-4
    total = sweep.sel(layer="total")
    counts = total.num_samples.values.astype(float)
    for rule, style in styles(total.rule.values).items():
        one = total.sel(rule=rule).transpose("seed", "num_samples")
        errors = (one.relative_bias + one.relative_variance).values
        drawn = (one.relative_variance.values > 0).any()
        shown = slice(None) if drawn else slice(0, 1)  # averaging what does not vary only costs
        x = counts[shown] * flops[rule]
        errors = errors[:, shown]
        _band(axes, x, np.maximum(errors, floor), floor, errors.mean(axis=0), style | {"label": _label(rule)})
        if drawn:
            first = one.isel(num_samples=0)
            bias, low, *_ = reporting.interval(one.relative_bias.isel(num_samples=-1).values)
            bias = bias if low > 0 else 0.0  # what is not resolved counts as none
            more = np.geomspace(counts[-1], 1e5, 30)
            variance = first.relative_variance.mean().item() * counts[0]
            axes.plot(
                more * flops[rule],
                np.maximum(bias + variance / more, floor),
                color=style["color"],
                linestyle=(0, (1, 2)),
                linewidth=1,
            )
    axes.set(
        title="Error of the gradient against compute: averages of K",
        xlabel="floating point operations of one averaged gradient, as XLA counts them",
        ylabel="mean squared error, E |g - gradient|² / |gradient|²",
        xscale="log",
        yscale="log",
    )
    axes.set_ylim(bottom=floor * 0.7)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    reporting.footnote(
        figure,
        f"mean and range over {total.sizes['seed']} seeds; dotted: bias + variance / K;"
        f" errors below {floor:g}, zero too, are drawn there",
    )
    return figure
