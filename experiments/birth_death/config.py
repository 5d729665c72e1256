"""Settings of the birth-death experiment, from which its command line is made."""

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
"""Steps of every problem at a choice of `--preset`."""


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Gradient descent, with and without birth and death of neurons, over many seeds."""

    problems: tuple[ProblemName, ...] = ProblemName.__args__  # type: ignore[attr-defined]
    """planted: a ReLU student of a planted teacher; mixture: a mixture of Gaussians, of the paper's
    repository; mixture_bad_start: the same with all units at one place."""
    schemes: tuple[SchemeName, ...] = SchemeName.__args__  # type: ignore[attr-defined]
    """gd: nobody is born, nobody dies; clone: the killed become copies of survivors, others are cloned;
    prior: the killed start afresh; centered: by rates less their mean."""
    preset: Literal["short", "seed"] = "short"
    """short: 10,000 steps of the planted problem; seed: the notebook's 100,000. Of the mixture 1,500 (from
    the bad start 2,500), or the published 3,000 (10,000)."""
    seeds: Count = 32  # Number of seeds: teacher, student, data. All schemes see the same.
    seed: Seed = 0  # Base PRNG seed.
    steps: Annotated[int, at_least(10)] | None = None  # Steps of all problems; by default the preset's.
    learning_rate: Positive = 2e-2  # Learning rate of the planted problem.
    batch_size: Count = 100  # Fresh examples a step.
    units: Count = 50  # Units of the student.
    teacher_units: Count = 10  # Units of the teacher.
    features: Annotated[int, at_least(2)] = 50  # Dimension of the inputs.
    alpha_clone: NotNegative = 1.0  # Speed of birth and death by clones on the planted problem.
    alpha_prior: NotNegative = 0.01  # Speed of death and fresh starts on the planted problem.
    alpha_mixture: NotNegative = 0.05  # Speed of both on the mixture.
    mixture_units: Count = 200  # Units that learn the mixture.
    probability: Literal["linear", "exponential"] = "linear"
    """Probability of an event by its rate: the rate, as published, or 1 - exp(-rate), as in the paper."""
    charge: Literal["copy", "split"] = "copy"
    """Charge of a copy: that of its origin, as published, or half of it for both."""
    slots: Literal["distinct", "independent"] = "distinct"
    """Neurons that clones overwrite: different ones, or each its own draw, as published."""
    test_points: Count = 2_000  # Points on which the loss of the planted problem is measured.
    records: Annotated[int, at_least(2)] = 60
    """Log-spaced measurements; between two of them at most a fiftieth of the run."""
    out: Path = Path("results/birth_death")
    """Folder for config.json, results.nc, summary.json and the figures."""

    def check(self) -> None:
        self.expect_distinct("problems", "schemes")

    def num_steps(self, problem: str) -> int:
        """Length of the run on a problem."""
        return self.steps or PRESETS[self.preset][problem]

    def deciding(self) -> dict[str, Any]:
        """The fields that decide the results."""
        return {**super().deciding(), "steps": {name: self.num_steps(name) for name in self.problems}}

    @classmethod
    def restored(cls, held: Mapping[str, Any]) -> Settings:
        """Makes the settings of which `deciding` was written as JSON."""
        given = dict(held["steps"].items() - PRESETS[held["preset"]].items()).values()
        return super().restored({**held, "steps": next(iter(given), None)})
