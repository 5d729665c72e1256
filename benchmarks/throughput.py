"""Speed relative to commonly used code, and to the limits of the machine.

    python -m benchmarks.throughput --quick

The library, the reference and the limits of the machine are timed alternately in one process, without compile
time. A case with a floor share above 1, or a ratio that spreads by more than 20 %, is measured again, and
marked if this persists. Several seeds run as one program of `lax_learning.ensemble`, whose time is divided by
their number. The reference uses one thread or all, whichever is faster.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks import machine
from benchmarks.cases import CASES, SYSTEMS, Case, Sizes
from benchmarks.floors import Floors, measured_floors
from benchmarks.timing import MOST_SPREAD, Comparison, compare, least_doubtful
from experiments import harness, memory, reporting
from experiments.settings import Count, Options

QUICK_EXAMPLES, QUICK_REPEATS, QUICK_SEEDS = 50, 3, (1, 8)
DETAILS = ("seed_mb", "reference_threads", "spread", "kernels_share")
"""Entries of a comparison that are in the `details` of throughput.json; the others are in its `rows`."""


@dataclass(frozen=True)
class Config(Options):
    """Time the library against commonly used loops."""

    quick: bool = False
    """Short form: SNR over 50 examples, 3 repeats, and 1 and 8 seeds unless --seeds is given."""
    systems: tuple[str, ...] = SYSTEMS
    """Parts of the library to time."""
    seeds: tuple[Count, ...] | None = None
    """Numbers of seeds per program; default: 1 8 64, and 512 on an accelerator. Some cases use one seed."""
    repeats: Count = 7
    """Number of measurements of each side; the median is reported."""
    out: Path = Path("results/throughput")
    """Folder for throughput.json, written after every case, and throughput.png."""
    resume: bool = False
    """Resume the run in --out: keep its measurements, but repeat those that are marked."""
    sizes: Sizes = field(default_factory=Sizes)

    def check(self) -> None:
        unknown = [name for name in self.systems if name not in SYSTEMS]
        if unknown:
            raise ValueError(f"--systems: expected some of {', '.join(SYSTEMS)}, got {' '.join(unknown)!r}")
        self.expect_distinct("systems", "seeds")

    def numbers_of_seeds(self) -> tuple[int, ...]:
        """Returns `seeds`, or its default on this device."""
        on_cpu = jax.default_backend() == "cpu"
        default = QUICK_SEEDS if self.quick else (1, 8, 64) if on_cpu else (1, 8, 64, 512)
        return self.seeds or default

    def check_fits(self) -> None:
        """Raises ValueError unless the sizes and the largest number of seeds fit into memory."""

        def needed(sizes: Mapping[str, int]) -> int:
            return Sizes(**{n: v for n, v in sizes.items() if n != "seeds"}).num_bytes(sizes["seeds"])

        given = {**vars(self.sizes), "seeds": max(self.numbers_of_seeds())}
        defaults = {**vars(Sizes()), "seeds": 1}
        memory.check_fits(
            needed, given, defaults, lambda name: (Config if name == "seeds" else Sizes).option(name)
        )


class Result(NamedTuple):
    """Measurement of a case with a number of seeds."""

    case: Case
    seeds: int
    comparison: Comparison

    def entries(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns a row of the JSON file, with seconds per piece of work and seed, and further details."""
        where = {"system": self.case.system, "case": self.case.name, "seeds": self.seeds}
        row = {"ratio": self.comparison.ratio, **self.comparison._asdict()}
        details = {name: row.pop(name) for name in DETAILS}
        goal, fit = self.case.goal_at(self.seeds), self.seeds_that_fit()
        doubtful = self.comparison.is_doubtful
        return where | row, where | {"goal": goal, "seeds_that_fit": fit, **details, "doubtful": doubtful}

    def seeds_that_fit(self) -> int | None:
        """Returns memory over the memory of a seed in this program; None if either is not reported."""
        total, of_seed = memory.total_bytes(), self.comparison.seed_mb
        return None if total is None or not of_seed else int(total / 1e6 / of_seed)


def run(config: Config) -> list[Result]:
    """Runs the benchmark, prints its table and writes its files."""
    if config.quick:
        sizes = replace(config.sizes, examples=min(config.sizes.examples, QUICK_EXAMPLES))
        config = replace(config, sizes=sizes, repeats=min(config.repeats, QUICK_REPEATS))
    config.check_fits()
    described = machine.describe_machine()
    print(f"device: {described['device']}")
    busy = machine.load()
    if busy is not None and busy > 0.25 * (os.cpu_count() or 1):
        print(f"warning: the machine is busy (load {busy:.1f}); ratios may be too high", file=sys.stderr)
    chosen = [case for case in CASES if case.system in config.systems]
    if not any(case.can_run() for case in chosen):
        needs = ", ".join(sorted({case.requires or "" for case in chosen}))
        raise ValueError(f"--systems: expected one that can run here, got some that need {needs}")
    for case in chosen:
        if not case.can_run():
            print(f"left out: {case.system}, {case.name}: it needs {case.requires}", file=sys.stderr)
    work = [
        (case, seeds)
        for case in chosen
        for seeds in config.numbers_of_seeds()
        if case.can_run() and case.goal_at(seeds) is not None
    ]
    deciding = {"machine": described, "versions": harness.versions()}
    deciding |= {"sizes": asdict(config.sizes), "repeats": config.repeats}
    harness.open_folder(config.out, deciding, resume=config.resume)
    path = config.out / "throughput.json"
    measured = read(path) if path.exists() else {}
    floors = measured_floors()
    with tqdm(work, unit="case") as progress:
        for case, seeds in progress:
            progress.set_description(f"{case.name}, {seeds} seed{'s' * (seeds > 1)}")
            before = measured.get((case, seeds))
            if before is None or before.is_doubtful:
                ours, reference = case.ours(config.sizes, seeds), case.reference(config.sizes)
                now = compare(ours, reference, config.repeats, measured_floors)
                measured[case, seeds] = now if before is None else least_doubtful((before, now))
                write(path, deciding, floors, measured)
    results = [Result(case, seeds, measured[case, seeds]) for case, seeds in work]
    machine.save(figure(results, described["device"]), config.out / "throughput.png")
    print(table(results))
    print(f"\nthroughput.json and throughput.png: {config.out}")
    return results


Measured = dict[tuple[Case, int], Comparison]
"""Measurements by case and number of seeds."""


def write(path: Path, deciding: dict[str, Any], floors: Floors, measured: Measured) -> None:
    """Writes all measurements so far: `rows` with the times, `details` with the rest."""
    order = sorted(measured, key=lambda each: (CASES.index(each[0]), each[1]))
    entries = [Result(case, seeds, measured[case, seeds]).entries() for case, seeds in order]
    rows, details = map(list, zip(*entries, strict=True))
    told = {**machine.head(), **deciding, "floors": floors._asdict(), "load": machine.load()}
    harness.write_json(path, {**told, "rows": rows, "details": details})


def read(path: Path) -> Measured:
    """Reads the measurements of cases that still exist."""
    written, cases = json.loads(path.read_text()), {(case.system, case.name): case for case in CASES}
    found = {}
    for row, details in zip(written["rows"], written["details"], strict=True):
        if case := cases.get((row["system"], row["case"])):
            entries = {**row, **details}
            found[case, row["seeds"]] = Comparison(*(entries[name] for name in Comparison._fields))
    return found


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
    figure, axes = plt.subplots(figsize=(8, 1.6 + 0.34 * len(cases)))
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


main = partial(machine.command_line, "throughput", Config, run)

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)  # an ensemble uses all of them
    sys.exit(main())
