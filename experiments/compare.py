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
from experiments.folders import FolderError, differing, without_nan, write_whole
from experiments.settings import Options

VALUES = ("metric", "mean", "median", "importance", "ci95", "n", "seeds", "reached", "seconds")
"""Metric and results in a summary row; the other entries identify the part of the run."""
MOST_PANELS = 16

Row = dict[str, Any]
Name = tuple[str, str]  # metric, and the entries that identify the part of the run
Pair = tuple[Row | None, Row | None]


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """Compare two finished runs of an experiment: print differing options and all metrics, and draw means."""

    a: Positional[Path]  # Folder of the first run, A.
    b: Positional[Path]  # Folder of the second run, B.
    figure: Path = Path("results/compare.png")  # File for the figure, *.png or *.pdf.

    def check(self) -> None:
        self.expect("figure", "a file *.png or *.pdf", self.figure.suffix in (".png", ".pdf"))


def rows_of(run: FinishedRun) -> dict[Name, Row]:
    """Returns the rows of a run's summary."""
    found = {}
    for row in without_nan(run.report.rows(in_float64(run.results))):
        part = " ".join(str(value) for name, value in row.items() if name not in VALUES)
        mean = row.get("median", row.get("importance"))
        found[row.get("metric", ""), part] = {"mean": mean, "ci95": (None, None), "n": 1, **row}
    return found


def overlap(pair: Pair) -> str:
    """Returns "yes" if the 95 % intervals overlap, otherwise "no"; "" if a run has no interval."""
    ends = [end for row in pair if row for end in row["ci95"]]
    if len(ends) < 4 or None in ends:
        return ""
    return "yes" if ends[0] <= ends[3] and ends[2] <= ends[1] else "no"


def table(pairs: dict[Name, Pair]) -> str:
    """Returns all rows of both runs as a table."""
    lines = []
    for (metric, part), pair in pairs.items():
        cells = ["" if row is None else reporting.cell(row) for row in pair]
        means = [row["mean"] for row in pair if row and row["mean"] is not None]
        difference = f"{means[1] - means[0]:+.3g}" if len(means) == 2 else ""
        lines.append([f"{part}: {metric}", *cells, difference, overlap(pair)])
    return reporting.table(["part: metric", "A", "B", "B - A", "intervals overlap"], lines)


def figure(a: FinishedRun, b: FinishedRun, pairs: dict[Name, Pair]) -> Figure | None:
    """Draws means and intervals of both runs, one panel per metric; returns None if there are no means."""
    by_metric: dict[str, dict[str, Pair]] = {}
    for (metric, part), pair in pairs.items():
        drawn = [row for row in pair if row and row["mean"] is not None and "epoch" not in row]
        if metric and drawn:
            by_metric.setdefault(metric, {})[part] = pair
    metrics = list(by_metric)[:MOST_PANELS]
    if not metrics:
        return None
    parts = list(dict.fromkeys(part for metric in metrics for part in by_metric[metric]))
    columns = min(4, len(metrics))
    lines = -(-len(metrics) // columns)
    size = (4 * columns + 2, lines * (0.3 * len(parts) + 1.6))
    both, axes = plt.subplots(lines, columns, figsize=size, sharey=True, squeeze=False)
    for panel, metric in zip(axes.flat, metrics, strict=False):
        places = np.array([parts.index(part) for part in by_metric[metric]])
        for i, name in enumerate((f"A: {a.folder}", f"B: {b.folder}")):
            rows = (pair[i] for pair in by_metric[metric].values())
            ends = [(row["mean"], *row["ci95"]) if row else (None,) * 3 for row in rows]
            mean, low, high = reporting.drawable(np.array(ends, float)).T
            style = {"fmt": "o", "color": f"C{i}", "label": name, "capsize": 3}
            panel.errorbar(mean, places + 0.3 * i - 0.15, xerr=[mean - low, high - mean], **style)
        unit = getattr(a.report, "VARIABLES", {}).get(metric, ("1", ""))[0]
        panel.set(title=metric.replace("_", " ") + f" ({unit})" * (unit != "1"))
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.set_ylim(len(parts) - 0.5, -0.5)
        panel.set_yticks(range(len(parts)), parts)
        panel.grid(axis="x", alpha=0.3)
    for panel in axes.flat[len(metrics) :]:
        panel.set_axis_off()
    both.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    both.suptitle(f"Two runs of {a.experiment}: means and 95 % intervals")
    return both


def run(config: Config) -> None:
    """Prints the differences between two runs, and draws both."""
    a, b = read_run(config.a), read_run(config.b)
    if a.experiment != b.experiment:
        raise FolderError(f"B: expected a run of {a.experiment}, like {config.a}, got one of {b.experiment}")
    print(f"A: {config.a}\nB: {config.b}\n")
    of_a, of_b = rows_of(a), rows_of(b)
    pairs = {key: (of_a.get(key), of_b.get(key)) for key in {**of_a, **of_b}}
    options = [[name, *map(str, values)] for name, values in differing(a.config, b.config).items()]
    same = "The configurations are the same."
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
