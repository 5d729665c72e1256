"""Figures of sweeps with theoretical curves, of bias against variance, and of error against compute."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.quality.measures import METRICS
from benchmarks.quality.report import axis_of
from benchmarks.quality.settings import SWEEPS
from experiments import reporting

LINEAR_PANELS = ("cosine", "angle_degrees")
LOG_PANELS = (
    "cosine_squared",
    "relative_variance",
    "relative_bias",
    "snr_draws",
    "snr_examples",
    "snr_examples_tutorial",
)
"""Metrics drawn with a logarithmic axis, and only where their 95 % interval excludes zero."""
ROUNDING = 1e-10
"""Threshold below which values are rounding errors of float32."""
FLOOR = 1e-3
"""Position of zeros on a logarithmic axis."""
THEORY_STYLE: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 1.4}


def styles(rules: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns colours and markers by rule, with sizes that keep coinciding points visible."""
    colours = plt.get_cmap("tab20")(np.arange(20))[[*range(0, 20, 2), *range(1, 20, 2)]]
    markers = "osD^v<>P*Xhd8p"
    return {
        rule: {
            "color": colours[i % 20], "marker": markers[i % len(markers)], "label": rule.replace("_", " "),
            "markersize": 9 - 5 * i / len(rules), "markerfacecolor": "none", "markeredgewidth": 1.3,
        }
        for i, rule in enumerate(rules)
    }  # fmt: skip


def sweep_figure(sweep: xr.Dataset, axis: str | None = None) -> Figure:
    """Draws all metrics against the varied setting, one panel per metric, one line per rule; dashed: theory.

    Args:
      sweep: dataset with the dimensions rule, seed, layer and the varied setting.
      axis: "layer" to draw the layers at a single value; by default the varied setting, for all layers.
    """
    if axis == "layer":
        sweep, label, scale = sweep.isel({axis_of(sweep): 0}), "layer", "names"
    else:
        axis = axis_of(sweep)
        sweep, label, scale = sweep.sel(layer="total"), SWEEPS[axis].label, SWEEPS[axis].scale
    figure, panels = plt.subplots(2, 4, figsize=(18, 9), layout="constrained", sharex=True)
    names, values = scale == "names", sweep[axis].values
    shifts = np.linspace(-0.3, 0.3, sweep.sizes["rule"]) if names else np.zeros(sweep.sizes["rule"])
    for panel, metric in zip(panels.flat, (*LINEAR_PANELS, *LOG_PANELS), strict=True):
        _set_axes(panel, metric, values, scale)
        for shift, (rule, style) in zip(shifts, styles(sweep.rule.values).items(), strict=True):
            x = np.arange(len(values)) + shift if names else values
            one = sweep.sel(rule=rule).transpose("seed", axis)
            line = {"linestyle": "none" if names else "-", "linewidth": 1.2}
            band(panel, x, one[metric].values, style | line, positive=metric in LOG_PANELS)
            if f"theory_{metric}" in one:
                theory = one[f"theory_{metric}"].mean("seed").values
                if names:
                    panel.hlines(theory, x - 0.05, x + 0.05, color=style["color"], zorder=5, linewidth=2)
                else:
                    panel.plot(x, theory, color=style["color"], zorder=5, **THEORY_STYLE)
    pure_noise: dict[str, Any] = {"color": "0.4", "linestyle": ":"}
    panels.flat[-1].axhline((2 / np.pi / sweep.attrs["examples"]) ** 0.5, **pure_noise)
    theory_style: dict[str, Any] = {"linewidth": 2} if names else THEORY_STYLE
    handles, labels = panels[0, 0].get_legend_handles_labels()
    handles += [Line2D([], [], color="0.3", **theory_style), Line2D([], [], **pure_noise)]
    labels += ["theory, small noise", "pure noise, tutorial SNR"]
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.suptitle(f"Gradient quality against {label}")
    note = (
        f"mean and 95 % interval over {sweep.sizes['seed']} seeds; logarithmic panels omit intervals that"
        " include zero; theory: weight perturbation, and node perturbation in dense layers"
    )
    reporting.footnote(figure, f"{label}\n\n{note}")
    return figure


def band(axes: Axes, x: np.ndarray, of_seeds: np.ndarray, style: dict[str, Any], *, positive: bool) -> None:
    """Draws mean and 95 % interval of `of_seeds [seed, x]`; if `positive`, only of intervals above 0."""
    mean, low, high, _ = np.array([reporting.interval(column) for column in of_seeds.T]).T
    if positive:
        resolved = np.where(np.isfinite(low), low, mean) > ROUNDING
        mean, low, high = (np.where(resolved, each, np.nan) for each in (mean, low, high))
    axes.plot(x, mean, **style)
    if style.get("linestyle") == "none":
        axes.vlines(x, low, high, color=style["color"], linewidth=1.2)
    else:
        axes.fill_between(x, low, high, color=style["color"], alpha=0.1, linewidth=0)


def _set_axes(panel: Axes, metric: str, values: np.ndarray, scale: str) -> None:
    panel.set_title(METRICS[metric], fontsize="medium")
    panel.grid(alpha=0.3)
    if scale == "names":
        panel.set_xticks(range(len(values)), [str(v) for v in values])
        panel.set_xlim(-0.5, len(values) - 0.5)
    elif scale == "symlog":
        panel.set_xscale("symlog", linthresh=min((v for v in values if v > 0), default=1))
    else:
        panel.set_xscale(scale)
        panel.set_xticks(values, [f"{v:g}" for v in values])
        panel.minorticks_off()
    if metric in LOG_PANELS:
        panel.set_yscale("log")
    elif metric == "angle_degrees":
        panel.set_yticks(range(0, 181, 30))
        panel.axhline(90, color="0.5", linewidth=0.8)


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
