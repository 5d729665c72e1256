"""Settings and command-line options of the comparison of rules."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from benchmarks.rules.problems import PROBLEMS
from experiments.registry import RULES, check_name
from experiments.settings import Count, Positive, Seed, Settings, at_least

RATES = tuple(float(f"{10 ** (k / 2):.3g}") for k in range(-10, 3))
"""Learning rates half a decade apart, from 1e-5 to 10."""

QUICK = ("digits-dense", "mnist1d-convolutional", "half_space-batch_norm")


class Preset(NamedTuple):
    """Settings with and without `--quick`."""

    problems: tuple[str, ...]  # names of problems, `DATA-MODEL`
    seeds: int  # number of test seeds
    tuning_seeds: int  # number of other seeds, with which every learning rate is tried
    updates: int  # updates per run
    rates: tuple[float, ...]  # learning rates to try


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Compare all rules, each at the best of the same learning rates, over many seeds.

    Tries every learning rate with a few seeds on validation data, and runs the best one with new seeds on
    test data: at equal numbers of updates, and in the time that backprop takes.
    """

    PRESETS = {  # noqa: RUF012 (not modified)
        "full": Preset(tuple(PROBLEMS), 32, 2, 300, RATES),
        "quick": Preset(QUICK, 8, 2, 200, RATES[::2]),
    }

    quick: bool = False
    """Short form: three problems, 8 seeds, 200 updates, and seven learning rates with two seeds each."""
    rules: tuple[str, ...] = tuple(RULES)
    """Rules to compare: names in experiments/registry.py, or your own as MODULE:FUNCTION."""
    problems: tuple[str, ...] | None = None
    """Problems as DATA-MODEL, from digits, mnist1d, half_space and dense, convolutional, attention,
    batch_norm; default: all twelve, or three with --quick."""
    seeds: Annotated[int, at_least(2)] | None = None
    """Number of test seeds, for initial weights, feedback, noise and order of examples; default: 32."""
    tuning_seeds: Count | None = None
    """Number of other seeds with which each learning rate is tried; default: 2."""
    updates: Count | None = None
    """Updates per run; default: 300."""
    seed: Seed = 0
    """Base PRNG seed."""
    rates: tuple[Positive, ...] | None = None
    """Learning rates of gradient descent to try for each rule; default: 13 from 1e-5 to 10."""
    batch_size: Count = 50
    """Examples per update."""
    evaluations: Count = 10
    """Points per learning curve; a divisor of the updates."""
    batches: Annotated[int, at_least(3)] = 16
    """Number of batches for cosine and signal to noise, before and after training."""
    sigma: Positive = 0.01
    """Standard deviation of the noise of perturbation rules."""
    decay: Positive = 0.01
    """Weight decay of Kolen-Pollack."""
    gain: Positive = 0.2
    """Size of the feedback weights in sign symmetry with unit magnitudes."""
    seconds: Positive = 0.5
    """Seconds spent on timing each rule against backprop."""
    data: str = "sample"
    """Source of digits: sample (5,000 MNIST images, offline), a folder of IDX files, tfds or download."""
    out: Path = Path("results/rules")
    """Folder for config.json, results.nc, summary.json, table.md and the figures."""

    @property
    def preset(self) -> Literal["full", "quick"]:
        """Name of the preset."""
        return "quick" if self.quick else "full"

    def check(self) -> None:
        self.expect_distinct("rules", "problems", "rates")
        for rule in self.rules:
            check_name(self.option("rules"), rule, RULES)
        known = set(self.chosen.problems) <= PROBLEMS.keys()
        self.expect("problems", f"some of {', '.join(PROBLEMS)}", known)
        divides = self.chosen.updates % self.evaluations == 0
        self.expect("evaluations", f"a divisor of the {self.chosen.updates} updates", divides)

    def parts(self) -> dict[str, tuple[str, str]]:
        """Returns problem and rule by the name of the part."""
        problems = self.chosen.problems
        return {f"{problem}-{rule}": (problem, rule) for problem in problems for rule in self.rules}

    @property
    def runs(self) -> int:
        """Number of runs per part: trials of all learning rates, and tests."""
        return len(self.chosen.rates) * self.chosen.tuning_seeds + self.chosen.seeds
