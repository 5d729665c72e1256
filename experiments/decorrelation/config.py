"""Settings and command-line options of the decorrelation experiment."""

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

    data: str | None  # source of the images; None if --data is required
    updates: int  # updates per run, except for the notebook's runs
    rules: tuple[RuleName, ...]  # rules to compare
    inputs: tuple[InputsName, ...]  # inputs on which to compare them


PRESETS = {
    "sample": Preset(
        "sample", 50, ("backprop", "feedback_alignment", "node_perturbation"), ("plain", "decorrelated")
    ),
    "full": Preset(None, 1_000, RuleName.__args__, InputsName.__args__),  # type: ignore[attr-defined]
}


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Compare learning rules on plain inputs and on inputs decorrelated by a learned matrix R."""

    PRESETS = PRESETS

    studies: tuple[StudyName, ...] = StudyName.__args__  # type: ignore[attr-defined]
    """notebook: the published notebook's runs (R alone, one or two decorrelated layers, R fixed);
    gain: rules on plain and decorrelated inputs; choices: variants of the update of R."""
    preset: Literal["sample", "full"] = "sample"
    """sample: 5,000 images, 50 updates, three rules, offline;
    full: all of MNIST (requires --data), 1,000 updates, all rules and inputs."""
    networks: tuple[NetworkName, ...] = NetworkName.__args__  # type: ignore[attr-defined]
    """Networks on which rules are compared."""
    rules: tuple[RuleName, ...] | None = None  # Rules to compare; by default those of --preset.
    inputs: tuple[InputsName, ...] | None = None
    """Inputs on which rules are compared; by default those of --preset.
    every_8th: decorrelated, with R updated at every 8th update of the weights."""
    seeds: Count = 8  # Number of seeds, for weights, and choice and order of the images.
    seed: Seed = 0  # Base PRNG seed.
    data: str | None = None
    """sample: 5,000 MNIST images, offline; FOLDER: MNIST as IDX files or prepared tfds data;
    tfds: default folder of tensorflow-datasets; download: fetch IDX files. By default that of --preset."""
    updates: Annotated[int, at_least(10)] | None = None
    """Weight updates per run, except in the study notebook; by default that of --preset."""
    batch_size: Annotated[int, Limits(1, 1_000)] = 64  # Images per update, at most 1,000.
    eta: NotNegative = 1e-3  # Step size of the updates of R, except in the study notebook.
    test_images: Count = 500  # Number of test images, and of validation images to choose the learning rate.
    out: Path = Path("results/decorrelation")
    """Folder for config.json, results.nc, summary.json and the figures."""

    def check(self) -> None:
        self.expect_distinct("studies", "networks", "rules", "inputs")
        named = f"a source of all of MNIST with --preset {self.preset}"
        self.expect("data", named, self.chosen.data is not None)
