"""Figures that compare rules: bias against variance, and error against compute."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from benchmarks.quality.figures import band, styles
from benchmarks.quality.report import axis_of
from experiments import reporting

FLOOR = 1e-3
"""Position of zeros on a logarithmic axis."""


def bias_against_variance(baseline: xr.Dataset) -> Figure:
    """Draws squared bias against variance of the whole gradient, one point per rule; contours: equal error.

    A bias whose 95 % interval includes zero is drawn as an arrow down from the upper end of the interval;
    zeros are drawn at `FLOOR`.
    """
    figure, axes = plt.subplots(figsize=(10.5, 6), layout="constrained")
    total = baseline.isel({axis_of(baseline): 0}).sel(layer="total")
    for rule, style in styles(total.rule.values).items():
        one = total.sel(rule=rule)
        x, x_error, _ = _point(one.relative_variance.values)
        y, y_error, unresolved = _point(one.relative_bias.values)
        marker: dict[str, Any] = {"linestyle": "none", "markersize": 1.6 * style["markersize"]}
        axes.plot(x, y, **style | marker)
        bars: dict[str, Any] = {"color": style["color"], "ecolor": style["color"], "capsize": 3}
        axes.errorbar(x, y, y_error, x_error, "none", uplims=unresolved, **bars)
    axes.set(xscale="log", yscale="log")
    axes.set_xlim(FLOOR * 0.6, max(axes.get_xlim()[1], 10))
    axes.set_ylim(FLOOR * 0.6, max(axes.get_ylim()[1], 10))
    grid = [np.geomspace(*limits, 200) for limits in (axes.get_xlim(), axes.get_ylim())]
    errors = grid[0][None] + grid[1][:, None]
    levels = 10.0 ** np.arange(-2, np.ceil(np.log10(errors.max())))
    lines = axes.contour(*grid, errors, levels=levels, colors="0.75", linewidths=0.8, zorder=0)
    axes.clabel(lines, fmt=lambda level: f"{level:g}", fontsize="small")
    axes.set(
        title="Bias against variance of the whole gradient",
        xlabel="variance over draws, tr Cov g / |gradient|²",
        ylabel="squared bias, |E g - gradient|² / |gradient|²",
    )
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    reporting.footnote(
        figure,
        f"mean and 95 % interval over {total.sizes['seed']} seeds; arrows: upper ends of intervals that"
        f" include zero; zeros at {FLOOR:g}; grey: equal mean squared error",
    )
    return figure


def _point(of_seeds: np.ndarray) -> tuple[float, list[list[float]], bool]:
    """Position of a mean over seeds, its error bars, and whether it is only an upper limit."""
    mean, low, high, _ = reporting.interval(of_seeds)
    if not np.any(of_seeds):
        return FLOOR, [[0.0], [0.0]], False
    if low <= 0:
        return max(high, FLOOR), [[max(high, FLOOR) * 0.5], [0.0]], True
    mean = max(mean, FLOOR)
    spread = [mean - max(low, FLOOR), high - mean] if np.isfinite(low) else [0.0, 0.0]
    return mean, [[max(each, 0.0)] for each in spread], False


def error_against_compute(sweep: xr.Dataset, flops: Mapping[str, float]) -> Figure:
    """Draws mean squared error of the whole gradient against operations, for averages of K gradients.

    Dotted: extrapolation bias + variance / K, with the variance at the smallest K, and the bias at the
    largest K if its 95 % interval excludes 0.
    """
    figure, axes = plt.subplots(figsize=(10.5, 6), layout="constrained")
    total = sweep.sel(layer="total")
    counts = total.num_samples.values.astype(float)
    for rule, style in styles(total.rule.values).items():
        one = total.sel(rule=rule).transpose("seed", "num_samples")
        errors = np.maximum((one.relative_bias + one.relative_variance).values, FLOOR)
        varies = bool((one.relative_variance.values > 0).any())
        shown = slice(None) if varies else slice(0, 1)  # averages do not change a deterministic gradient
        band(axes, counts[shown] * flops[rule], errors[:, shown], style, positive=False)
        if varies:
            more = np.geomspace(counts[-1], 1e5, 100)
            bias, low, *_ = reporting.interval(one.relative_bias.isel(num_samples=-1).values)
            variance = one.relative_variance.isel(num_samples=0).mean().item() * counts[0]
            expected = (bias if low > 0 else 0.0) + variance / more
            expected[expected <= FLOOR] = np.nan
            axes.plot(more * flops[rule], expected, color=style["color"], linestyle=(0, (1, 2)), linewidth=1)
    axes.set(
        title="Error of the gradient against compute: averages of K",
        xlabel="floating-point operations of the matrix products of an averaged gradient",
        ylabel="mean squared error, E |g - gradient|² / |gradient|²",
        xscale="log",
        yscale="log",
    )
    axes.set_ylim(bottom=FLOOR * 0.6)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    reporting.footnote(
        figure,
        f"mean and 95 % interval over {total.sizes['seed']} seeds; dotted: bias + variance / K;"
        f" errors below {FLOOR:g} are drawn at {FLOOR:g}",
    )
    return figure
