"""Report of the throughput benchmark: rows, a table, and a figure of the ratios with their goals."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from benchmarks.cases import Case
from benchmarks.timing import MOST_SPREAD, Comparison
from experiments import memory, reporting

TIMES = ("ours_s", "reference_s", "ratio", "floor_share", "compile_s", "peak_mb")
DETAILS = ("seed_mb", "reference_threads", "spread", "kernels_share")


class Result(NamedTuple):
    """Measurement of a case with a number of seeds."""

    case: Case
    seeds: int
    comparison: Comparison

    def row(self) -> dict[str, Any]:
        """Returns the row of the JSON file; times are seconds per piece of work and seed."""
        measured = {name: getattr(self.comparison, name) for name in TIMES}
        return {"system": self.case.system, "case": self.case.name, "seeds": self.seeds, **measured}

    def details(self) -> dict[str, Any]:
        """Returns further entries of the JSON file, such as the goal and the number of seeds that fit."""
        where = {"system": self.case.system, "case": self.case.name, "seeds": self.seeds}
        wanted = {"goal": self.case.goal_at(self.seeds), "seeds_that_fit": self.seeds_that_fit()}
        measured = {name: getattr(self.comparison, name) for name in DETAILS}
        return {**where, **wanted, **measured, "doubtful": self.comparison.is_doubtful}

    def seeds_that_fit(self) -> int | None:
        """Returns memory over the memory of a seed in this program; None if either is not reported."""
        total, of_seed = memory.total_bytes(), self.comparison.seed_mb
        return None if total is None or not of_seed else int(total / 1e6 / of_seed)


def comparison_of(row: dict[str, Any], details: dict[str, Any]) -> Comparison:
    """Reads a measurement from a row and its details."""
    both = {**row, **details}
    return Comparison(*(both[name] for name in Comparison._fields))


def table(results: Sequence[Result]) -> str:
    """Formats all rows with their goals; shares and spreads that stayed doubtful are marked with `!`."""
    header = (
        "case", "seeds", "ours (ms)", "reference (ms)", "ratio", "spread", "goal", "share", "kernels",
        "compile (s)", "peak (MB)", "seeds that fit",
    )  # fmt: skip
    rows = []
    for result in results:
        case, seeds, c = result
        goal, fit = case.goal_at(seeds), result.seeds_that_fit()
        rows.append((
            f"{case.system}: {case.name}", str(seeds), f"{1e3 * c.ours_s:.3g}", f"{1e3 * c.reference_s:.3g}",
            f"{c.ratio:.2f}" if c.ratio < 10 else f"{c.ratio:.0f}",
            f"{c.spread:.0%}{' !' * (c.spread > MOST_SPREAD)}",
            "" if goal is None else f"{goal:g}", f"{c.floor_share:.0%}{' !' * (c.floor_share > 1)}",
            "" if c.kernels_share is None else f"{c.kernels_share:.0%}",
            f"{c.compile_s:.1f}", f"{c.peak_mb:.1f}", "" if fit is None else f"{fit:,}",
        ))  # fmt: skip
    return reporting.table(header, rows)


def figure(results: Sequence[Result], device: str) -> Figure:
    """Draws the ratio of every case, with one colour per number of seeds, and goals as bars."""
    cases = list(dict.fromkeys(result.case for result in results))
    numbers = sorted({result.seeds for result in results})
    figure, axes = plt.subplots(figsize=(8, 1.6 + 0.34 * len(cases)), layout="constrained")
    for place, seeds in enumerate(numbers):
        shift = 0.4 * ((place + 0.5) / len(numbers) - 0.5)
        of_number = [result for result in results if result.seeds == seeds]
        heights = [cases.index(result.case) + shift for result in of_number]
        ratios = [result.comparison.ratio for result in of_number]
        (dots,) = axes.plot(ratios, heights, "o", label=f"{seeds} seed{'s' * (seeds > 1)}")
        for result, height in zip(of_number, heights, strict=True):
            if result.comparison.is_doubtful:
                axes.plot(result.comparison.ratio, height, "o", mfc="white", mec=dots.get_color())
        goals = [result.case.goal_at(seeds) or float("nan") for result in of_number]
        style = {"color": "black", "markersize": 9, "mew": 2, "label": "goal" if place == 0 else None}
        axes.plot(goals, heights, "|", **style)
    axes.axvline(1, color="0.7", linewidth=1)
    axes.set(xscale="log", xlabel="speed relative to the reference (one seed), per seed")
    axes.set_yticks(range(len(cases)), [f"{case.system}: {case.name}" for case in cases])
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.set_title("Speed relative to commonly used code (hollow: doubtful)")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    reporting.footnote(figure, device)
    return figure
