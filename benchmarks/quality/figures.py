"""Figures of sweeps with theoretical curves, of bias against variance, and of error against compute.

They are drawn from the rows of the JSON file.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks import machine
from benchmarks.quality.measures import METRICS
from experiments import reporting

Rows = Sequence[Mapping[str, Any]]
LINEAR_PANELS = ("cosine", "angle_degrees")
LOG_PANELS = (
    "cosine_squared", "relative_variance", "relative_bias", "snr_draws", "snr_examples",
    "snr_examples_tutorial",
)  # fmt: skip
"""Metrics drawn with a logarithmic axis, and only where their 95 % interval excludes zero."""
ROUNDING = 1e-10
"""Threshold below which values are rounding errors of float32."""
FLOOR = 1e-3
"""Position of zeros on a logarithmic axis."""
THEORY_LINE: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 1.4}
THEORY_MARK: dict[str, Any] = {"linestyle": "none", "marker": "_", "markersize": 8, "markeredgewidth": 2}


def styles(rows: Rows) -> dict[str, dict[str, Any]]:
    """Returns colours and markers by rule, with sizes that keep coinciding points visible."""
    colours = plt.get_cmap("tab20")(np.arange(20))[[*range(0, 20, 2), *range(1, 20, 2)]]
    markers, rules = "osD^v<>P*Xhd8p", list(dict.fromkeys(row["rule"] for row in rows))
    return {
        rule: {
            "color": colours[i % 20], "marker": markers[i % len(markers)], "label": rule.replace("_", " "),
            "markersize": 9 - 5 * i / len(rules), "markerfacecolor": "none", "markeredgewidth": 1.3,
        }
        for i, rule in enumerate(rules)
    }  # fmt: skip


def numbers(rows: Rows, rule: str, metric: str, *names: str) -> np.ndarray:
    """Returns numbers of a metric in all rows of a rule, `[names, rows]`, NaN where they are undefined."""
    found = [row["metrics"].get(metric, {}) for row in rows if row["rule"] == rule]
    return np.array([[each.get(name, np.nan) for each in found] for name in names])


def sweep_figure(rows: Rows, axis: str, label: str, scale: str, examples: int, note: str) -> Figure:
    """Draws all metrics, one panel per metric, one line per rule; dashed: theory.

    `axis` is the entry of the rows on the axis, "value" or "layer"; `scale` is "log", "symlog" or "names".
    """
    values = list(dict.fromkeys(row[axis] for row in rows))
    figure, panels = plt.subplots(2, 4, figsize=(18, 9), sharex=True)
    names, of_rules = scale == "names", styles(rows)
    theory_style = THEORY_MARK if names else THEORY_LINE
    shifts = np.linspace(-0.3, 0.3, len(of_rules)) if names else np.zeros(len(of_rules))
    for panel, metric in zip(panels.flat, (*LINEAR_PANELS, *LOG_PANELS), strict=True):
        _set_axes(panel, metric, values, scale)
        for shift, (rule, style) in zip(shifts, of_rules.items(), strict=True):
            x = np.arange(len(values)) + shift if names else values
            found = numbers(rows, rule, metric, "mean", "low", "high", "theory")
            line = {"linestyle": "none" if names else "-", "linewidth": 1.2}
            draw_band(panel, x, found[:3], style | line, positive=metric in LOG_PANELS)
            panel.plot(x, found[3], color=style["color"], zorder=5, **theory_style)
    pure_noise: dict[str, Any] = {"color": "0.4", "linestyle": ":"}
    panels.flat[-1].axhline((2 / np.pi / examples) ** 0.5, **pure_noise)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    handles += [Line2D([], [], color="0.3", **theory_style), Line2D([], [], **pure_noise)]
    labels += ["theory, small noise", "pure noise, tutorial SNR"]
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.suptitle(f"Gradient quality against {label}")
    note += "; logarithmic panels omit intervals that include zero; theory: weight perturbation, and node "
    reporting.footnote(figure, f"{label}\n\n{note}perturbation in dense layers")
    return figure


def draw_band(axes: Axes, x: Any, band: np.ndarray, style: dict[str, Any], *, positive: bool) -> None:
    """Draws means and 95 % intervals `[3, x]`; if `positive`, only intervals above 0."""
    mean, low, high = band
    if positive:
        resolved = np.where(np.isfinite(low), low, mean) > ROUNDING
        mean, low, high = (np.where(resolved, each, np.nan) for each in (mean, low, high))
    axes.plot(x, mean, **style)
    if style.get("linestyle") == "none":
        axes.vlines(x, low, high, color=style["color"], linewidth=1.2)
    else:
        axes.fill_between(x, low, high, color=style["color"], alpha=0.1, linewidth=0)


def _set_axes(panel: Axes, metric: str, values: Sequence[Any], scale: str) -> None:
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


def bias_against_variance(rows: Rows, note: str) -> Figure:
    """Draws squared bias against variance of the whole gradient, one point per rule; contours: equal error.

    A bias whose 95 % interval includes zero is drawn as an arrow down from the upper end of the interval;
    zeros are drawn at `FLOOR`.
    """
    figure, axes = plt.subplots(figsize=(10.5, 6))
    for rule, style in styles(rows).items():
        x, x_error, _ = _point(rows, rule, "relative_variance")
        y, y_error, unresolved = _point(rows, rule, "relative_bias")
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
    note += "; arrows: upper ends of intervals that include zero; grey: equal mean squared error; "
    return machine.finished(
        figure,
        f"{note}zeros at {FLOOR:g}",
        title="Bias against variance of the whole gradient",
        xlabel="variance over draws, tr Cov g / |gradient|²",
        ylabel="squared bias, |E g - gradient|² / |gradient|²",
    )


def _point(rows: Rows, rule: str, metric: str) -> tuple[float, list[list[float]], bool]:
    """Position of a mean over seeds, its error bars, and whether it is only an upper limit."""
    mean, low, high = numbers(rows, rule, metric, "mean", "low", "high")[:, 0]
    if mean == low == high == 0:
        return FLOOR, [[0.0], [0.0]], False
    if low <= 0:
        return max(high, FLOOR), [[max(high, FLOOR) * 0.5], [0.0]], True
    mean = max(mean, FLOOR)
    spread = [mean - max(low, FLOOR), high - mean] if np.isfinite(low) else [0.0, 0.0]
    return mean, [[max(each, 0.0)] for each in spread], False


def error_against_compute(rows: Rows, flops: Mapping[str, float], note: str) -> Figure:
    """Draws mean squared error of the whole gradient against operations, for averages of K gradients.

    Dotted: extrapolation bias + variance / K, with the variance at the smallest K, and the bias at the
    largest K if its 95 % interval excludes 0.
    """
    figure, axes = plt.subplots(figsize=(10.5, 6))
    counts = np.array(list(dict.fromkeys(row["value"] for row in rows)), float)
    for rule, style in styles(rows).items():
        errors = np.maximum(numbers(rows, rule, "relative_error", "mean", "low", "high"), FLOOR)
        (variance,) = numbers(rows, rule, "relative_variance", "mean")
        varies = bool((variance > 0).any())
        shown = slice(None) if varies else slice(0, 1)  # averages do not change a deterministic gradient
        draw_band(axes, counts[shown] * flops[rule], errors[:, shown], style, positive=False)
        if varies:
            more = np.geomspace(counts[-1], 1e5, 100)
            bias, low = numbers(rows, rule, "relative_bias", "mean", "low")[:, -1]
            expected = (bias if low > 0 else 0.0) + variance[0] * counts[0] / more
            expected[expected <= FLOOR] = np.nan
            axes.plot(more * flops[rule], expected, color=style["color"], linestyle=(0, (1, 2)), linewidth=1)
    axes.set(xscale="log", yscale="log")
    axes.set_ylim(bottom=FLOOR * 0.6)
    return machine.finished(
        figure,
        f"{note}; dotted: bias + variance / K; errors below {FLOOR:g} are drawn at {FLOOR:g}",
        title="Error of the gradient against compute: averages of K",
        xlabel="floating-point operations of the matrix products of an averaged gradient",
        ylabel="mean squared error, E |g - gradient|² / |gradient|²",
    )
