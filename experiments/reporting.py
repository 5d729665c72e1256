"""Helpers for reports: intervals over seeds, tables, and bands, error bars and notes in figures."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy.special import bdtrik, stdtrit  # scipy.stats takes half a second to import

matplotlib.rcParams["figure.constrained_layout.use"] = True


def interval(values: np.ndarray) -> tuple[float, float, float, int]:
    """Returns mean, 95 % confidence interval (Student's t) and number of the finite values over seeds."""
    values = np.asarray(values, dtype=float).ravel()
    values = values[np.isfinite(values)]
    n = values.size
    mean = float(values.mean()) if n else float("nan")
    if n < 2:
        return mean, float("nan"), float("nan"), n
    half = float(stdtrit(n - 1, 0.975) * values.std(ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half, n


def median_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Returns the lower median of values that may be inf, and its 95 % interval by order statistics."""
    ordered, last = np.sort(values), np.size(values) - 1
    low = max(math.ceil(bdtrik(0.025, ordered.size, 0.5)) - 1, 0)
    return float(ordered[last // 2]), float(ordered[low]), float(ordered[last - low])


def share_of_variance(values: np.ndarray, levels: np.ndarray) -> float:
    """Returns the share of the variance that one factor explains alone (Hays, Statistics, 1963).

    `omega^2 = (SS_between - (k - 1) MS_within) / (SS_total + MS_within)` for k levels; its mean is about 0
    for a factor without effect. NaN for one level, equal values, or no more values than levels.
    """
    _, which, sizes = np.unique(levels, return_inverse=True, return_counts=True)
    n, k = len(values), len(sizes)
    if k < 2 or n <= k or np.ptp(values) == 0:
        return float("nan")
    means = np.bincount(which, values) / sizes
    between = float(np.sum(sizes * (means - values.mean()) ** 2))
    total = float(np.sum((values - values.mean()) ** 2))
    within = (total - between) / (n - k)
    return (between - (k - 1) * within) / (total + within)


def resampled_shares(values: np.ndarray, levels: np.ndarray, times: int = 500) -> np.ndarray:
    """Returns `share_of_variance` of bootstrap resamples of the configurations, `[times]`."""
    drawn = np.random.default_rng(0).integers(0, len(values), (times, len(values)))
    return np.array([share_of_variance(values[rows], levels[rows]) for rows in drawn])


def summary_rows(part: str, metrics: Mapping[str, np.ndarray], *, kind: str = "rule") -> list[dict[str, Any]]:
    """Returns rows of `summary.json` for one part of an experiment, such as a rule, from values over seeds.

    Mean and interval are over the finite values, `n` of all `seeds`.
    """
    rows = []
    for metric, values in metrics.items():
        *numbers, n = interval(values)
        mean, *ends = (None if np.isnan(v) else v for v in numbers)
        found = {"mean": mean, "ci95": ends, "n": n, "seeds": int(np.size(values))}
        rows.append({kind: part, "metric": metric, **found})
    return rows


def cell(row: Mapping[str, Any], form: str = ".3g", of_half: str = ".1g", factor: float = 1.0) -> str:
    """Formats mean ± half the 95 % interval, and how many seeds are finite unless all are; "-" if none is."""
    mean, (low, high) = row["mean"], row["ci95"]
    if mean is None:
        return "-"
    text = f"{mean * factor:{form}}"
    if low is not None:
        text += f" ± {(high - low) / 2 * factor:{of_half}}"
    seeds = row.get("seeds", row["n"])
    return text if row["n"] == seeds else f"{text} ({row['n']}/{seeds})"


def by_part(summary: Iterable[Mapping[str, Any]], *kinds: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Groups the rows of a summary by their entries `kinds`, such as "rule", and by metric."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in summary:
        found.setdefault(tuple(row[kind] for kind in kinds), {})[row["metric"]] = row
    return found


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Formats a Markdown table, with the first column aligned left and the others right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    for line in lines:
        line[:] = [line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def drawable(values: np.ndarray) -> np.ndarray:
    """Replaces values that cannot be drawn, not finite or beyond 1e30, by NaN."""
    values = np.asarray(values, float)
    return np.where(np.abs(values) < 1e30, values, np.nan)


def limits(values: np.ndarray, margin: float) -> tuple[float, float] | None:
    """Returns limits of an axis for the drawable values, with a margin; None if there are none."""
    values = drawable(values)
    if not np.isfinite(values).any():
        return None
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    wider = margin * (high - low) or 0.1 * max(abs(low), 1.0)
    return low - wider, high + wider


def _intervals(of_seeds: Iterable[np.ndarray]) -> np.ndarray:
    """Returns mean and ends of the 95 % interval of the drawable values over seeds, `[3, place]`."""
    return np.array([interval(drawable(values))[:3] for values in of_seeds]).T


def band(axes: Axes, x: np.ndarray, of_seeds: np.ndarray, **style: Any) -> None:
    """Draws the mean over seeds `[seed, x]` as a line, and its 95 % interval as a band."""
    draw_band(axes, x, *_intervals(of_seeds.T), **style)


def draw_band(axes: Axes, x: Any, mean: np.ndarray, low: np.ndarray, high: np.ndarray, **style: Any) -> None:
    """Draws a line with a shaded band."""
    (line,) = axes.plot(x, mean, **style)
    axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def bars(axes: Axes, places: Any, seeds: Iterable[np.ndarray], along: str = "y", **style: Any) -> np.ndarray:
    """Draws the mean over seeds and its 95 % interval at each place, and returns the means."""
    mean, low, high = _intervals(seeds)
    x, y = (places, mean) if along == "y" else (mean, places)
    axes.errorbar(x, y, **{"fmt": "o", "capsize": 3, f"{along}err": [mean - low, high - mean], **style})
    return mean


def drawn(draws: Iterable[Callable[..., Figure | None]], *arguments: Any) -> dict[str, Figure]:
    """Returns figures by the names of the functions that draw them, without those that are None."""
    made = {each.__name__: each(*arguments) for each in draws}
    return {name: figure for name, figure in made.items() if figure is not None}


def legend_beside(figure: Figure, axes: Axes) -> None:
    """Puts the legend of `axes` beside all axes of the figure."""
    lines = axes.get_legend_handles_labels()
    figure.legend(*lines, loc="outside right center", frameon=False, fontsize="small")


def draw(figure: Figure, path: Any, dpi: int = 150, file_format: str = "png") -> None:
    """Writes a figure; logarithmic axes without drawable values become linear."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            if axis.get_scale() == "log" and not 0 < low <= high < np.inf:
                axis.axes.set(**{f"{axis.axis_name}scale": "linear"})
    figure.savefig(path, format=file_format, dpi=dpi)


def footnote(figure: Figure, text: str) -> None:
    """Writes a note below a figure."""
    figure.supxlabel(text, fontsize="small", color="0.4")


def note_seeds(figure: Figure, results: Any, more: str = "") -> None:
    """Writes a note below a figure on what its bands and error bars show."""
    footnote(figure, f"mean and 95 % interval over {results.sizes['seed']} seeds{more}")


def completed(figure: Figure, results: Any, title: str = "", more: str = "", grid: Any = None) -> Figure:
    """Adds a title, grids in the axes `grid` (all by default) and a note on the seeds to a figure."""
    for axes in figure.axes if grid is None else grid:
        axes.grid(alpha=0.3)
    if title:
        figure.suptitle(title)
    note_seeds(figure, results, more)
    return figure


BOX = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
MOST_LEVELS = 5
"""Numbers with at most this many different values, and strings, are spaced evenly and jittered."""


def parallel_coordinates(
    columns: Mapping[str, np.ndarray], score: np.ndarray, label: str, logarithmic: Collection[str], best: int
) -> Figure:
    """Draws each configuration with a finite score as a line through its values and score, the best on top.

    `columns` has the values of all configurations by hyper-parameter; those in `logarithmic` get a
    logarithmic axis. `best` is 1 if higher scores are better, -1 if lower scores are.
    """
    score, random = drawable(score), np.random.default_rng(0)
    order = np.argsort(best * score, kind="stable")[: np.isfinite(score).sum()]  # NaN comes last
    score, lines = score[order], []
    figure, axes = plt.subplots(figsize=(5 + 1.8 * len(columns), 5.5))
    of_all = {**{name: values[order] for name, values in columns.items()}, "score": score}
    for place, (name, at) in enumerate(of_all.items() if len(order) else ()):
        levels, log = np.unique(at), name in logarithmic
        if len(levels) <= MOST_LEVELS or at.dtype.kind not in "fiu":
            at = np.searchsorted(levels, at) + random.uniform(-0.03, 0.03, len(at)) * len(levels)
            marks = np.arange(len(levels))
            texts = [f"{level:.3g}" if levels.dtype.kind == "f" else str(level) for level in levels]
        else:
            at = np.log10(at) if log else at
            marks = np.linspace(at.min(), at.max(), 5)
            texts = [f"{10**mark if log else mark:.3g}" for mark in marks]
        low, span = marks[0], np.ptp(marks) or 1.0
        lines.append((at - low) / span)
        axes.axvline(place, color="0.3", linewidth=1)
        near = {"xytext": (4, 0), "textcoords": "offset points", "fontsize": "small", "va": "center"}
        for height, text in zip((marks - low) / span, texts, strict=True):
            axes.annotate(text, (place, height), bbox=BOX, **near)
    low, high = np.percentile(score, (10, 100) if best > 0 else (0, 90)) if len(order) else (0.0, 1.0)
    colours = ScalarMappable(Normalize(low, high), "viridis" if best > 0 else "viridis_r")
    for line, of_line in zip(np.transpose(lines), score, strict=True):
        axes.plot(line, color=colours.to_rgba(of_line), linewidth=0.9, alpha=0.7)
    axes.set_xticks(range(len(of_all)), [name.replace("_", " ") for name in of_all])
    axes.set(title="one line per configuration", xlim=(-0.1, len(columns) + 0.4), yticks=[])
    figure.suptitle(f"{len(order)} configurations and their scores")
    figure.colorbar(colours, ax=axes, label=label, extend="min" if best > 0 else "max")
    return figure
