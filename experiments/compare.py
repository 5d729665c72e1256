"""Shows two finished runs of an experiment side by side."""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tyro.conf import Positional

from experiments import harness, reporting
from experiments.finished import FinishedRun, in_float64, read_run
from experiments.folders import FolderError, without_nan, write_whole
from experiments.settings import Options

VALUES = ("metric", "mean", "median", "importance", "ci95", "n", "seeds", "reached", "seconds")
"""Metric and results in a summary row; the other entries identify the part of the run."""
MOST_PANELS = 16

Row = dict[str, Any]
Pair = tuple[Row | None, Row | None]


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """Compare two finished runs of an experiment: print differing options and all metrics, and draw means."""

    a: Positional[Path]  # Folder of the first run, A.
    b: Positional[Path]  # Folder of the second run, B.
    figure: Path = Path("results/compare.png")  # File for the figure, *.png or *.pdf.

    def check(self) -> None:
        self.expect("figure", "a file *.png or *.pdf", self.figure.suffix in (".png", ".pdf"))


def differing(a: Row, b: Row) -> list[list[str]]:
    """Returns the options that differ, with the values of both runs."""
    names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
    return [[name, str(a.get(name)), str(b.get(name))] for name in names]


def rows_of(run: FinishedRun) -> dict[tuple[str, str], Row]:
    """Returns the rows of a run's summary by metric and by the entries that identify the part of the run."""
    found = {}
    for row in without_nan(run.report.rows(in_float64(run.results))):
        part = " ".join(str(value) for name, value in row.items() if name not in VALUES)
        mean = row.get("median", row.get("importance"))
        found[row.get("metric", ""), part] = {"mean": mean, "ci95": (None, None), "n": 1, **row}
    return found


def overlap(pair: Pair) -> str:
    """Returns "yes" if the 95 % intervals overlap, otherwise "no"; "" if a run has no interval."""
    ends: list[Any] = [end for row in pair for end in (row or {}).get("ci95") or (None, None)]
    if None in ends:
        return ""
    return "yes" if ends[0] <= ends[3] and ends[2] <= ends[1] else "no"


def difference(pair: Pair) -> str:
    """Returns the mean of B minus the mean of A; "" if a run has no mean."""
    means: list[Any] = [(row or {}).get("mean") for row in pair]
    return "" if None in means else f"{means[1] - means[0]:+.3g}"


def table(pairs: dict[tuple[str, str], Pair]) -> str:
    """Returns all rows of both runs as a table."""
    lines = []
    for (metric, part), pair in pairs.items():
        cells = ("" if row is None else reporting.cell(row) for row in pair)
        lines.append([f"{part}: {metric}", *cells, difference(pair), overlap(pair)])
    return reporting.table(["part: metric", "A", "B", "B - A", "intervals overlap"], lines)


def figure(a: FinishedRun, b: FinishedRun, pairs: dict[tuple[str, str], Pair]) -> Figure | None:
    """Draws means and intervals of both runs, one panel per metric; returns None if there are no means."""
    by_metric: dict[str, dict[str, Pair]] = {}
    for (metric, part), pair in pairs.items():
        rows = [row for row in pair if row is not None and row["mean"] is not None and "epoch" not in row]
        if metric and rows:
            by_metric.setdefault(metric, {})[part] = pair
    metrics = list(by_metric)[:MOST_PANELS]
    if not metrics:
        return None
    parts = list(dict.fromkeys(part for metric in metrics for part in by_metric[metric]))
    columns = min(4, len(metrics))
    lines = -(-len(metrics) // columns)
    size = (4 * columns + 2, lines * (0.3 * len(parts) + 1.6))
    drawn, axes = plt.subplots(lines, columns, figsize=size, sharey=True, squeeze=False)
    for panel, metric in zip(axes.flat, metrics, strict=False):
        for i, name in enumerate((f"A: {a.folder}", f"B: {b.folder}")):
            found = [(parts.index(part), pair[i]) for part, pair in by_metric[metric].items()]
            shift = 0.3 * i - 0.15
            _points(panel, [(at + shift, row) for at, row in found if row is not None], name, f"C{i}")
        unit = getattr(a.report, "VARIABLES", {}).get(metric, ("1", ""))[0]
        panel.set(title=metric.replace("_", " ") + f" ({unit})" * (unit != "1"))
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.set_ylim(len(parts) - 0.5, -0.5)
        panel.set_yticks(range(len(parts)), parts)
        panel.grid(axis="x", alpha=0.3)
    for panel in axes.flat[len(metrics) :]:
        panel.set_axis_off()
    drawn.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    drawn.suptitle(f"Two runs of {a.experiment}: means and 95 % intervals")
    return drawn


def _points(axes: Any, rows: list[tuple[float, Row]], label: str, colour: str) -> None:
    y = [at for at, _ in rows]
    ends = [[np.nan if v is None else v for v in (row["mean"], *row["ci95"])] for _, row in rows]
    mean, low, high = reporting.drawable(np.array(ends, float).reshape(-1, 3)).T
    axes.errorbar(mean, y, xerr=[mean - low, high - mean], fmt="o", color=colour, label=label, capsize=3)


def run(config: Config) -> None:
    """Prints the differences between two runs, and draws both."""
    a, b = read_run(config.a), read_run(config.b)
    if a.experiment != b.experiment:
        raise FolderError(f"B: expected a run of {a.experiment}, like {config.a}, got one of {b.experiment}")
    print(f"A: {config.a}\nB: {config.b}\n")
    of_a, of_b = rows_of(a), rows_of(b)
    pairs = {key: (of_a.get(key), of_b.get(key)) for key in {**of_a, **of_b}}
    options, same = differing(a.config, b.config), "The configurations are the same."
    print(reporting.table(["option", "A", "B"], options) if options else same, table(pairs), sep="\n\n")
    drawn = figure(a, b, pairs)
    if drawn is not None:
        harness.make_folder(config.figure.parent)
        form = config.figure.suffix[1:]
        write_whole(config.figure, lambda path: reporting.draw(drawn, path, file_format=form))
        print(f"\nfigure: {config.figure}")


main = partial(harness.command_line, "compare", Config, run, stopped="nothing else was written")

if __name__ == "__main__":
    sys.exit(main())
