"""The settings of the birth-death experiment, from which its command line is made."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from experiments.settings import Settings

ProblemName = Literal["planted", "mixture", "mixture_bad_start"]
SchemeName = Literal["gd", "clone", "clone_centered", "prior", "prior_centered"]


class Preset(NamedTuple):
    """What `--preset` stands for: steps of the planted problem, of the mixture, and of its bad start."""

    planted: int
    mixture: int
    mixture_bad_start: int


PRESETS = {"short": Preset(10_000, 1_500, 2_500), "seed": Preset(100_000, 3_000, 10_000)}


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
    seeds: int = 32
    """Number of seeds: teacher, student, data. All schemes see the same."""
    seed: int = 0
    """The seed of the seeds."""
    steps: int | None = None
    """Steps of all problems; by default the preset's."""
    learning_rate: float = 2e-2
    """Learning rate of the planted problem."""
    batch_size: int = 100
    """Fresh examples a step."""
    units: int = 50
    """Units of the student."""
    teacher_units: int = 10
    """Units of the teacher."""
    features: int = 50
    """Dimension of the inputs."""
    alpha_clone: float = 1.0
    """Speed of birth and death by clones on the planted problem."""
    alpha_prior: float = 0.01
    """Speed of death and fresh starts on the planted problem."""
    alpha_mixture: float = 0.05
    """Speed of both on the mixture."""
    mixture_units: int = 200
    """Units that learn the mixture."""
    probability: Literal["linear", "exponential"] = "linear"
    """Probability of an event by its rate: the rate, as published, or 1 - exp(-rate), as in the paper."""
    charge: Literal["copy", "split"] = "copy"
    """Whether a copy has the charge of its origin, as published, or both share it."""
    slots: Literal["distinct", "independent"] = "distinct"
    """Whether clones overwrite different neurons, or each its own draw, as published."""
    test_points: int = 2_000
    """Points on which the loss of the planted problem is measured."""
    records: int = 60
    """Log-spaced measurements; between two of them at most a fiftieth of the run."""
    out: Path = Path("results/birth_death")
    """Folder for config.json, results.nc, summary.json and the figures."""

    def __post_init__(self) -> None:
        counts = ("seeds", "batch_size", "units", "teacher_units", "features", "mixture_units", "test_points")
        for name in counts:
            self._expect(name, "at least 1", getattr(self, name) >= 1)
        self._expect("features", "at least 2", self.features >= 2)
        self._expect("records", "at least 2", self.records >= 2)
        self._expect("steps", "at least 10", self.steps is None or self.steps >= 10)
        self._expect("learning_rate", "a number > 0", self.learning_rate > 0)
        for name in ("alpha_clone", "alpha_prior", "alpha_mixture"):
            self._expect(name, "a number >= 0", getattr(self, name) >= 0)
        for name in ("problems", "schemes"):
            given = getattr(self, name)
            self._expect(name, "each at most once and one at least", len(set(given)) == len(given) > 0)

    def num_steps(self, problem: str) -> int:
        """Length of the run on a problem."""
        return self.steps or getattr(PRESETS[self.preset], problem)

    def deciding(self) -> dict[str, Any]:
        """The fields that decide the results."""
        return {**super().deciding(), "steps": {name: self.num_steps(name) for name in self.problems}}
