"""Settings and command-line options of the birth-death experiment."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from experiments.settings import Count, NotNegative, Positive, Seed, Settings, at_least

ProblemName = Literal["planted", "mixture", "mixture_bad_start"]
SchemeName = Literal["gd", "clone", "clone_centered", "prior", "prior_centered"]


PRESETS = {
    "short": {"planted": 10_000, "mixture": 1_500, "mixture_bad_start": 2_500},
    "seed": {"planted": 100_000, "mixture": 3_000, "mixture_bad_start": 10_000},
}
"""Number of steps of every problem, by `--preset`."""


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Compare gradient descent with and without birth and death of neurons, over many seeds."""

    problems: tuple[ProblemName, ...] = ProblemName.__args__  # type: ignore[attr-defined]
    """planted: ReLU units learn from a planted teacher; mixture: Gaussian units fit the paper's mixture;
    mixture_bad_start: the same, with all units starting near one place."""
    schemes: tuple[SchemeName, ...] = SchemeName.__args__  # type: ignore[attr-defined]
    """gd: gradient descent alone; clone: killed neurons become copies of survivors, and others are cloned;
    prior: killed neurons are redrawn from a prior; _centered: the mean is subtracted from the rates."""
    preset: Literal["short", "seed"] = "short"
    """short: 10,000 steps of planted, 1,500 of mixture and 2,500 of mixture_bad_start;
    seed: 100,000, 3,000 and 10,000 steps, as published."""
    seeds: Count = 32  # Number of seeds, for teacher, student and data; the same for all schemes.
    seed: Seed = 0  # Base PRNG seed.
    steps: Annotated[int, at_least(10)] | None = None  # Steps on each problem; by default those of --preset.
    learning_rate: Positive = 2e-2  # Learning rate on the planted problem (0.01 on the mixtures).
    batch_size: Count = 100  # New examples per step of the planted problem.
    units: Count = 50  # Hidden units of the student.
    teacher_units: Count = 10  # Hidden units of the teacher.
    features: Annotated[int, at_least(2)] = 50  # Dimension of the inputs of student and teacher.
    alpha_clone: NotNegative = 1.0  # Factor of kill and clone rates: clone schemes, planted problem.
    alpha_prior: NotNegative = 0.01  # Factor of kill rates: prior schemes, planted problem.
    alpha_mixture: NotNegative = 0.05  # Factor of kill and clone rates: all schemes, mixtures.
    mixture_units: Count = 200  # Gaussian units that fit the mixture.
    probability: Literal["linear", "exponential"] = "linear"
    """Probability of an event. linear: its rate, as in the published code; exponential: 1 - exp(-rate)."""
    charge: Literal["copy", "split"] = "copy"
    """Charge (outgoing weight) of a copy. copy: that of the original, as published; split: shared with it."""
    slots: Literal["distinct", "independent"] = "distinct"
    """Neurons that clones overwrite. distinct: all different; independent: drawn one by one, as published."""
    test_points: Count = 2_000  # Test points for the loss of the planted problem.
    records: Annotated[int, at_least(2)] = 60
    """Number of log-spaced measurements; more are added so that gaps are at most a fiftieth of the run."""
    out: Path = Path("results/birth_death")
    """Folder for config.json, results.nc, summary.json and the figures."""

    def check(self) -> None:
        self.expect_distinct("problems", "schemes")

    def num_steps(self, problem: str) -> int:
        """Returns the number of steps on a problem."""
        return self.steps or PRESETS[self.preset][problem]

    def deciding(self) -> dict[str, Any]:
        """Fields that determine the results."""
        return {**super().deciding(), "steps": {name: self.num_steps(name) for name in self.problems}}

    @classmethod
    def restored(cls, held: Mapping[str, Any]) -> Settings:
        """Restores settings from the JSON of `deciding`."""
        given = dict(held["steps"].items() - PRESETS[held["preset"]].items()).values()
        return super().restored({**held, "steps": next(iter(given), None)})
