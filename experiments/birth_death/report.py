"""Table and figures of the birth-death experiment."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments import reporting
from experiments.reporting import median_interval

STYLES = {
    scheme: {"label": label, "color": colour, "linestyle": dashes}
    for scheme, label, colour, dashes in (
        ("gd", "GD", "black", "-"),
        ("clone", "GD + clone", "tab:blue", "-"),
        ("clone_centered", "GD + clone, centred", "tab:cyan", "--"),
        ("prior", "GD + prior", "tab:red", "-"),
        ("prior_centered", "GD + prior, centred", "tab:orange", "--"),
    )
}
TITLES = {
    "planted": "planted teacher",
    "mixture": "mixture of Gaussians",
    "mixture_bad_start": "mixture, bad start",
}
THRESHOLDS = (3e-2, 1e-2, 3e-3, 1e-3)
EVENTS = ("killed", "cloned", "lineages")
COLUMNS = ("loss", "slope", *(f"steps to {t:.0e}" for t in THRESHOLDS), "kills", "clones", "lineages")
VARIABLES = {
    "scheme": ("1", "scheme of birth and death"),
    "coordinate": ("1", "coordinate of a position"),
    "*_step": ("1", "steps of gradient descent"),
    "*_loss": ("1", "loss: mean squared error (planted), or squared distance of functions (mixture)"),
    "*_killed": ("1", "units killed so far"),
    "*_cloned": ("1", "units cloned so far"),
    "*_lineages": ("1", "initial units with descendants"),
    "*_places": ("1", "position of a unit: |c| w (planted), or centre y and charge c (mixture)"),
    "*_targets": ("1", "position where a unit should be"),
    "*_unit": ("1", "index of the unit"),
    "*_target": ("1", "index of the target"),
}


def problems_of(results: xr.Dataset) -> list[str]:
    """Returns the names of the problems that were run."""
    return [name for name in TITLES if f"{name}_loss" in results]


def slopes(steps: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Fits the slope of log loss against log step over the last decade of steps, per seed `[seed, step]`."""
    late = (steps >= steps[-1] / 10) & (steps > 0)
    x = np.log(steps[late])
    x = x - x.mean()
    return _log(losses[:, late]) @ x / (x @ x)


def _log(losses: np.ndarray) -> np.ndarray:
    """Returns natural logarithms; NaN for losses that are not finite or not positive."""
    return np.log(losses, where=np.isfinite(losses) & (losses > 0), out=np.full(losses.shape, np.nan))


def times_to(steps: np.ndarray, losses: np.ndarray, threshold: float) -> np.ndarray:
    """Returns the first measured step with a loss <= the threshold, for every seed; inf if there is none."""
    reached = losses <= threshold
    return np.where(reached.any(axis=1), steps[reached.argmax(axis=1)], np.inf)


def rows(results: xr.Dataset) -> list[dict[str, Any]]:
    """Returns the rows of `summary.json`: means over seeds, and medians of the steps to reach a loss."""
    summary = []
    for problem in problems_of(results):
        steps = results[f"{problem}_step"].values
        for scheme in results.scheme.values.tolist():
            one = results.sel(scheme=scheme)
            losses = one[f"{problem}_loss"].values
            metrics = {
                "final_loss": losses[:, -1],
                "log10_final_loss": _log(losses[:, -1]) / np.log(10),
                "slope": slopes(steps, losses),
                **{n: one[f"{problem}_{n}"].values[:, -1] for n in EVENTS},
            }
            found = reporting.summary_rows(scheme, metrics, kind="scheme")
            for threshold in THRESHOLDS:
                times = times_to(steps, losses, threshold)
                mean, *ends = (None if np.isinf(v) else v for v in median_interval(times))
                median = {"metric": f"median_steps_to_{threshold:.0e}", "mean": mean, "ci95": ends}
                reached = int(np.isfinite(times).sum())
                found.append({"scheme": scheme, **median, "n": len(times), "reached": reached})
            summary += [{"problem": problem, **row} for row in found]
    return summary


def table(summary: list[dict[str, Any]]) -> str:
    """Returns the printed table: geometric means of the final loss, slopes, steps to reach a loss, events."""
    lines = []
    for (problem, scheme), of in reporting.by_part(summary, "problem", "scheme").items():
        lines.append([
            f"{TITLES[problem]}: {STYLES[scheme]['label']}", _geometric(of["log10_final_loss"]),
            reporting.cell(of["slope"], ".2f", ".2f"),
            *(_time(row) for metric, row in of.items() if metric.startswith("median_steps_to")),
            *(reporting.cell({**of[name], "ci95": (None, None)}, ".0f") for name in EVENTS),
        ])  # fmt: skip
    return reporting.table(["problem and scheme", *COLUMNS], lines)


def _geometric(row: dict[str, Any]) -> str:
    """Formats the geometric mean and its interval, from those of the logarithm."""
    if row["mean"] is None:
        return "-"
    ends = [10**v for v in (row["mean"], *(b for b in row["ci95"] if b is not None))]
    bounds = f" ({ends[1]:.2g} .. {ends[2]:.2g})" if len(ends) == 3 else ""
    finite = "" if row["n"] == row["seeds"] else f" ({row['n']}/{row['seeds']})"
    return f"{ends[0]:.2g}{bounds}{finite}"


def _time(row: dict[str, Any]) -> str:
    share = "" if row["reached"] == row["n"] else f" ({row['reached']}/{row['n']})"
    return ("-" if row["mean"] is None else f"{row['mean']:.0f}") + share


def figures(results: xr.Dataset) -> dict[str, Figure]:
    """Draws all figures of every problem."""
    return {
        f"{problem}_{name}": figure
        for problem in problems_of(results)
        for name, figure in reporting.drawn((loss, times, events, places), results, problem).items()
    }


def loss(results: xr.Dataset, problem: str) -> Figure:
    """Loss against steps on logarithmic axes, with fitted slopes."""
    figure, (curves, fitted) = plt.subplots(1, 2, figsize=(13, 5.2), width_ratios=(3, 2))
    steps, schemes = results[f"{problem}_step"].values, results.scheme.values.tolist()
    for i, scheme in enumerate(schemes):
        losses, style = results[f"{problem}_loss"].sel(scheme=scheme).values, STYLES[scheme]
        mean, low, high, _ = np.array([reporting.interval(_log(column)) for column in losses.T[1:]]).T
        with np.errstate(over="ignore"):  # intervals of logarithms are wide if a seed diverged
            mean, low, high = reporting.drawable(np.exp([mean, low, high]))
        reporting.draw_band(curves, steps[1:], mean, np.where(low > 1e-30, low, np.nan), high, **style)
        of_seeds = slopes(steps, losses)
        fitted.plot(of_seeds, np.full(of_seeds.size, i + 0.2), "|", color=style["color"], alpha=0.5)
        (centre,) = reporting.bars(fitted, [i], [of_seeds], "x", color=style["color"])
        text = f"{centre:.2f}" if np.isfinite(centre) else ""
        fitted.annotate(text, (centre, i), (0, 8), textcoords="offset points", ha="center")
    curves.axvspan(steps[-1] / 10, steps[-1], color="0.93", zorder=0)
    curves.set(xscale="log", yscale="log", xlabel="steps", ylabel="loss (geometric mean)")
    curves.set_title(f"Loss: {TITLES[problem]}")
    curves.legend(frameon=False)
    fitted.set_yticks(range(len(schemes)), [STYLES[scheme]["label"] for scheme in schemes])
    fitted.set(title="Slope over the last decade (grey)", xlabel="d log loss / d log step")
    fitted.set_ylim(len(schemes) - 0.5, -0.6)
    return reporting.completed(figure, results, more="; strokes: seeds")


def times(results: xr.Dataset, problem: str) -> Figure:
    """Share of seeds with a loss still above a threshold, against steps."""
    figure, every = plt.subplots(1, len(THRESHOLDS), figsize=(4.2 * len(THRESHOLDS), 4.4), sharey=True)
    steps = results[f"{problem}_step"].values
    for axes, level in zip(every, THRESHOLDS, strict=True):
        for scheme in results.scheme.values:
            reached = times_to(steps, results[f"{problem}_loss"].sel(scheme=scheme).values, level)
            axes.step(steps, (reached[:, None] > steps).mean(axis=0), where="post", **STYLES[scheme])
        axes.set(title=f"loss above {level:.0e}", xlabel="steps", xscale="log", ylim=(-0.03, 1.03))
        axes.set_xlim(1, steps[-1])
        axes.grid(alpha=0.3)
    every[0].set_ylabel("share of seeds")
    every[0].legend(frameon=False, fontsize="small")
    figure.suptitle(f"Steps to reach a loss: {TITLES[problem]}")
    reporting.footnote(figure, f"{results.sizes['seed']} seeds")
    return figure


def events(results: xr.Dataset, problem: str) -> Figure:
    """Kills and clones per step, and the number of initial units that still have descendants."""
    figure, every = plt.subplots(1, 3, figsize=(15, 4.6))
    steps = results[f"{problem}_step"].values
    titles = ("Kills", "Clones", "Lineages: initial units with descendants")
    for axes, metric, title in zip(every, EVENTS, titles, strict=True):
        is_count = metric == "lineages"
        for scheme in results.scheme.values:
            values = results[f"{problem}_{metric}"].sel(scheme=scheme).values
            rate = np.diff(reporting.drawable(values), axis=1) / np.diff(steps)
            if is_count or rate.any():
                reporting.band(axes, steps[1:], values[:, 1:] if is_count else rate, **STYLES[scheme])
        axes.set(title=title, ylabel="units" if is_count else "units per step", xscale="log", xlabel="steps")
        axes.set_ylim(bottom=0)
    every[-1].legend(frameon=False, fontsize="small")
    return reporting.completed(figure, results, f"Events: {TITLES[problem]}")


def places(results: xr.Dataset, problem: str) -> Figure:
    """Paths of the units of the first seed, and the targets."""
    schemes, planted, first = results.scheme.values, problem == "planted", results.isel(seed=0)
    size = (4 * len(schemes), 4.3)
    figure, (every,) = plt.subplots(1, len(schemes), figsize=size, sharex=True, sharey=True, squeeze=False)
    paths = reporting.drawable(first[f"{problem}_places"].transpose("scheme", ..., "coordinate").values)
    targets = first[f"{problem}_targets"].values
    for axes, scheme, path in zip(every, schemes, paths, strict=True):
        (x, y), colour = path.transpose(2, 0, 1), STYLES[scheme]["color"]
        axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.5)
        axes.plot(x[-1], y[-1], "o", color=colour, markersize=3.5, label="end")
        if planted:
            for i, target in enumerate(targets):
                label = None if i else "direction of a teacher unit"
                axes.axline((0, 0), target, color="0.5", linestyle="--", linewidth=0.8, label=label)
        else:
            axes.plot(*targets.T, "k+", markersize=10, label="Gaussian of the target mixture")
        axes.set(title=STYLES[scheme]["label"], xlabel=r"$|c|\,w_1$" if planted else "centre y")
    ends = paths[np.isfinite(paths).all(axis=-1)]
    spans = np.quantile(ends, (0.002, 0.998), axis=0) if len(ends) else ends
    every[0].set(xlim=reporting.limits(spans[:, 0], 0.1), ylim=reporting.limits(spans[:, 1], 0.1))
    every[0].set_ylabel(r"$|c|\,w_2$" if planted else "charge c")
    every[0].legend(frameon=False, fontsize="small")
    figure.suptitle(f"Paths of the units, first seed: {TITLES[problem]}")
    return figure
