"""Figures of the comparison of rules: learning curves against updates and time, and bars by layer."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments import reporting

IN_A_PANEL = 9
"""Maximum number of rules per panel of curves."""


def name_of(part: xr.Dataset) -> str:
    """Returns the rule of a part as it is written in figures."""
    return str(part.rule.item()).replace("_", " ")


def curves(problem: str, parts: Sequence[xr.Dataset]) -> Figure:
    """Draws test accuracy against updates and seconds, with nine rules per column; backprop is dashed."""
    groups = [parts[i : i + IN_A_PANEL] for i in range(0, len(parts), IN_A_PANEL)]
    drawn, grid = plt.subplots(
        2, len(groups), figsize=(4.2 * len(groups), 9), layout="constrained", sharey=True, squeeze=False
    )
    of_backprop = float(np.median([part.backprop_seconds for part in parts]))
    exact = [part for part in parts if name_of(part) == "backprop"]
    for column, group in zip(grid.T, groups, strict=True):
        others = [part for part in group if name_of(part) != "backprop"]
        for axes, unit in zip(column, (None, of_backprop), strict=True):
            for part in [*exact, *others]:
                x = part.step.values * (1 if unit is None else unit * float(part.relative_seconds))
                style = {"color": "0.3", "linestyle": "--"} if any(part is one for one in exact) else {}
                reporting.band(axes, x, part.test_accuracy.values, label=name_of(part), **style)
            axes.grid(alpha=0.3)
            axes.set_xlabel("updates" if unit is None else "seconds (one seed, without compilation)")
        column[1].set_xlim(0, 1.5 * of_backprop * float(parts[0].step[-1]))
        column[1].legend(
            frameon=False, fontsize="x-small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15)
        )
    for axes in grid[:, 0]:
        axes.set_ylabel("test accuracy")
    drawn.suptitle(f"{problem}: every rule at its own best learning rate", fontsize="large")
    reporting.note_seeds(drawn, parts[0], "; dashed: backprop")
    return drawn


def layers(problem: str, parts: Sequence[xr.Dataset], metric: str, label: str) -> Figure:
    """Draws a metric of every layer, and in total, before (light) and after training (dark), by rule."""
    names = [str(layer) for layer in parts[0][metric].dropna("layer", how="all").layer.values]
    drawn, grid = plt.subplots(
        1, len(names), figsize=(1.6 + 1.9 * len(names), 1.5 + 0.24 * len(parts)),
        layout="constrained", sharey=True, squeeze=False,
    )  # fmt: skip
    places = np.arange(len(parts))[::-1]
    for axes, layer in zip(grid[0], names, strict=True):
        for when, color, shift in (("start", "tab:cyan", 0.2), ("end", "tab:blue", -0.2)):
            values = [part[metric].sel(layer=layer, when=when).values for part in parts]
            mean, low, high, _ = np.array([reporting.interval(reporting.drawable(v)) for v in values]).T
            style = {"color": color, "height": 0.4, "error_kw": {"linewidth": 0.8}}
            axes.barh(places + shift, mean, xerr=[mean - low, high - mean], label=when, **style)
        axes.set(title=layer if layer == "total" else f"layer {layer}", xlabel=metric)
        axes.grid(alpha=0.3, axis="x")
        axes.axvline(0, color="0.5", linewidth=0.8)
        axes.set_ylim(-0.7, len(parts) - 0.3)
        if metric == "snr":
            axes.set_xscale("symlog", linthresh=1e-3)
            axes.set_xticks([-1e-2, 0, 1e-2, 1], ["-0.01", "0", "0.01", "1"])
    grid[0, 0].set_yticks(places, [name_of(part) for part in parts])
    reporting.legend_beside(drawn, grid[0, 0])
    drawn.suptitle(f"{problem}: {label} by layer, at the start and the end of training", fontsize="large")
    reporting.note_seeds(drawn, parts[0])
    return drawn
