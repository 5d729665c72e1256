"""Settings of the decorrelation experiment, from which its command line is made."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from experiments.settings import Count, Limits, NotNegative, Seed, Settings, at_least

StudyName = Literal["notebook", "gain", "choices"]
NetworkName = Literal["dense", "convolutional"]
RuleName = Literal[
    "backprop", "feedback_alignment", "direct_feedback_alignment", "kolen_pollack", "node_perturbation",
    "node_perturbation_activity", "weight_perturbation",
]  # fmt: skip
InputsName = Literal["plain", "decorrelated", "every_8th"]


class Preset(NamedTuple):
    """Settings of a `--preset`."""

    data: str | None  # where the images come from; None if that must be said
    updates: int  # of a run that is no epoch of the notebook's
    rules: tuple[RuleName, ...]  # to compare
    inputs: tuple[InputsName, ...]  # on which to compare them


PRESETS = {
    "sample": Preset(
        "sample", 50, ("backprop", "feedback_alignment", "node_perturbation"), ("plain", "decorrelated")
    ),
    "full": Preset(None, 1_000, RuleName.__args__, InputsName.__args__),  # type: ignore[attr-defined]
}


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Decorrelation of the inputs of every layer: the notebook's runs, what it gains, and its choices."""

    PRESETS = PRESETS

    studies: tuple[StudyName, ...] = StudyName.__args__  # type: ignore[attr-defined]
    """notebook: decorrelation alone, one decorrelated layer, two, and two without learning R; gain: rules on
    plain and on decorrelated inputs; choices: whitening, shares of the examples, updates, dead pixels."""
    preset: Literal["sample", "full"] = "sample"
    """sample: 5,000 images, 50 updates and three rules, offline; full: 1,000 updates and all rules on all
    images, which needs --data."""
    networks: tuple[NetworkName, ...] = NetworkName.__args__  # type: ignore[attr-defined]
    """Networks on which rules are compared."""
    rules: tuple[RuleName, ...] | None = None  # Rules to compare; by default the preset's.
    inputs: tuple[InputsName, ...] | None = None
    """Inputs that the rules are compared on: plain ones, decorrelated ones, and those of an R that is updated
    at every 8th update of the weights; by default the preset's."""
    seeds: Count = 8  # Number of seeds: weights, draw and order of the images.
    seed: Seed = 0  # Base PRNG seed.
    data: str | None = None
    """MNIST: sample, a folder of IDX files or tfds data, tfds, or download; by default the preset's."""
    updates: Annotated[int, at_least(10)] | None = None
    """Updates of the rules that are compared; by default the preset's."""
    batch_size: Annotated[int, Limits(1, 1_000)] = 64  # Images an update, at most the 1,000 of the notebook.
    eta: NotNegative = 1e-3  # Step size of R, but in the notebook's runs.
    test_images: Count = 500  # Images to measure accuracy on, and as many to choose the learning rate by.
    out: Path = Path("results/decorrelation")
    """Folder for config.json, results.nc, summary.json and the figures."""

    def check(self) -> None:
        self.expect_distinct("studies", "networks", "rules", "inputs")
        named = f"a source of the whole MNIST with --preset {self.preset}"
        self.expect("data", named, self.chosen.data is not None)
