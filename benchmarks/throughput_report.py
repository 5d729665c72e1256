"""Report of the throughput benchmark: rows, a table, and a figure of the ratios with their goals."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from benchmarks.cases import Case
from benchmarks.floors import memory_mb
from benchmarks.timing import MOST_SPREAD, Comparison
from experiments import reporting

COLUMNS = (
    "system", "case", "seeds", "ours_s", "reference_s", "ratio", "floor_share", "compile_s", "peak_mb"
)  # fmt: skip


class Result(NamedTuple):
    """A case at a number of seeds, and what came out."""

    case: Case
    seeds: int
    comparison: Comparison

    def row(self) -> dict[str, Any]:
        """The row of the JSON file; seconds are those of one seed's piece of work."""
        c = self.comparison
        values = (
            self.case.system, self.case.name, self.seeds,
            c.ours_s, c.reference_s, c.ratio, c.floor_share, c.compile_s, c.peak_mb,
        )  # fmt: skip
        return dict(zip(COLUMNS, values, strict=True))

    def details(self) -> dict[str, Any]:
        """Details of the row beside times: its goal, and how many seeds this machine holds."""
        return {
            "system": self.case.system, "case": self.case.name, "seeds": self.seeds,
            "goal": self.case.goal_at(self.seeds), "seeds_that_fit": self.seeds_that_fit(),
            "seed_mb": self.comparison.seed_mb, "reference_threads": self.comparison.reference_threads,
            "spread": self.comparison.spread, "kernels_share": self.comparison.kernels_share,
            "doubtful": self.comparison.is_doubtful,
        }  # fmt: skip

    def seeds_that_fit(self) -> int | None:
        """Memory over what a seed takes in this program; None where the backend does not tell."""
        memory, of_seed = memory_mb(), self.comparison.seed_mb
        return None if memory is None or not of_seed else int(memory / of_seed)


def comparison_of(row: dict[str, Any], details: dict[str, Any]) -> Comparison:
    """Measurement from a row and its details."""
    both = {**row, **details}
    return Comparison(*(both[name] for name in Comparison._fields))


def table(results: Sequence[Result]) -> str:
    """All rows, with the goals; what stayed doubtful has a mark."""
    header = (
        "case", "seeds", "ours (ms)", "reference (ms)", "ratio", "spread", "goal", "share", "kernels",
        "compile (s)",
        "peak (MB)", "seeds that fit",
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
    """Ratio by case on a logarithmic axis, a marker a number of seeds, goals as upright bars."""
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
            if result.comparison.is_doubtful:  # a hole in the dot
                axes.plot(result.comparison.ratio, height, "o", mfc="white", mec=dots.get_color())
        goals = [(r.case.goal_at(seeds), h) for r, h in zip(of_number, heights, strict=True)]
        met = [(goal, height) for goal, height in goals if goal is not None]
        label = "goal" if place == 0 else None
        axes.plot(
            [g for g, _ in met], [h for _, h in met], "|", color="black", markersize=9, mew=2, label=label
        )
    axes.axvline(1, color="0.7", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(cases)), [f"{case.system}: {case.name}" for case in cases])
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.set_xlabel("times as fast as the reference (one seed), per seed")
    axes.grid(axis="x", alpha=0.3)
    axes.set_title("Throughput against what people run today (hollow: doubtful)")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    reporting.footnote(figure, device)
    return figure
