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
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
from tqdm import tqdm

from benchmarks import machine
from benchmarks import throughput_report as report
from benchmarks.cases import CASES, SYSTEMS, Case, Sizes
from benchmarks.floors import Floors, measured_floors
from benchmarks.timing import Comparison, compare, least_doubtful
from experiments import harness, memory
from experiments.settings import Count, Options

QUICK_EXAMPLES, QUICK_REPEATS, QUICK_SEEDS = 50, 3, (1, 8)


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
        if unknown or not self.systems:
            raise ValueError(f"--systems: expected some of {', '.join(SYSTEMS)}, got {' '.join(unknown)!r}")
        self.expect_distinct("systems", "seeds")

    def numbers_of_seeds(self) -> tuple[int, ...]:
        """Returns `seeds`, or its default on this device."""
        on_cpu = jax.default_backend() == "cpu"
        default = QUICK_SEEDS if self.quick else (1, 8, 64) if on_cpu else (1, 8, 64, 512)
        return self.seeds or default

    def shortened(self) -> "Config":
        """Returns the configuration with the sizes and repeats of `quick`, if that is set."""
        if not self.quick:
            return self
        sizes = replace(self.sizes, examples=min(self.sizes.examples, QUICK_EXAMPLES))
        return replace(self, sizes=sizes, repeats=min(self.repeats, QUICK_REPEATS))

    def check_fits(self) -> None:
        """Raises ValueError unless the sizes and the largest number of seeds fit into memory."""

        def needed(sizes: Mapping[str, int]) -> int:
            return Sizes(**{n: v for n, v in sizes.items() if n != "seeds"}).num_bytes(sizes["seeds"])

        given = {**vars(self.sizes), "seeds": max(self.numbers_of_seeds())}
        defaults = {**vars(Sizes()), "seeds": 1}
        memory.check_fits(
            needed, given, defaults, lambda name: (Config if name == "seeds" else Sizes).option(name)
        )


def run(config: Config) -> list[report.Result]:
    """Runs the benchmark, prints its table and writes its files."""
    config = config.shortened()
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
        if case.can_run() and (seeds == 1 or case.ensemble_goal is not None)
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
    results = [report.Result(case, seeds, measured[case, seeds]) for case, seeds in work]
    figure = report.figure(results, described["device"])
    save = partial(figure.savefig, format="png", dpi=150)
    harness.write_whole(config.out / "throughput.png", save)
    plt.close(figure)
    print(report.table(results))
    print(f"\nthroughput.json and throughput.png: {config.out}")
    return results


Measured = dict[tuple[Case, int], Comparison]
"""Measurements by case and number of seeds."""


def write(path: Path, deciding: dict[str, Any], floors: Floors, measured: Measured) -> None:
    """Writes all measurements so far: `rows` with the times, `details` with the rest."""
    order = sorted(measured, key=lambda each: (CASES.index(each[0]), each[1]))
    results = [report.Result(case, seeds, measured[case, seeds]) for case, seeds in order]
    content = {
        "date": machine.now(),
        **deciding,
        "floors": floors._asdict(),
        "load": machine.load(),
        "rows": [result.row() for result in results],
        "details": [result.details() for result in results],
    }
    harness.write_json(path, content)


def read(path: Path) -> Measured:
    """Reads the measurements of cases that still exist."""
    written, cases = json.loads(path.read_text()), {(case.system, case.name): case for case in CASES}
    return {
        (cases[row["system"], row["case"]], row["seeds"]): report.comparison_of(row, details)
        for row, details in zip(written["rows"], written["details"], strict=True)
        if (row["system"], row["case"]) in cases
    }


main = partial(harness.command_line, "throughput", Config, run, package="benchmarks")

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)  # an ensemble uses all of them
    sys.exit(main())
