"""The settings of the symbolic discriminator, from which its command line is made."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from experiments.settings import Count, Seed, Settings, at_least

StudyName = Literal[
    "activations", "accuracy", "libraries", "hyper_parameters",
    "depth", "extensions", "fixed_set", "regularised",
]  # fmt: skip


class Preset(NamedTuple):
    """Settings of a `--preset`."""

    points: int  # of every curve
    epochs: int  # of training a critic
    seeds: int  # of every configuration outside of the study of hyper-parameters
    configurations: int  # in that study
    updates: int  # of a network that fits a target


PRESETS = {
    "sample": Preset(100, 500, 4, 64, 2_000),
    "study": Preset(100, 2_000, 4, 512, 20_000),
    "seed": Preset(700, 100_000, 8, 512, 20_000),
}


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Critics that tell curves of formulas from those of untrained networks: the notebook's steps."""

    PRESETS = PRESETS

    studies: tuple[StudyName, ...] = StudyName.__args__  # type: ignore[attr-defined]
    """activations: curves of untrained networks and of the library (steps 15.1 and 15.2); accuracy: over
    training (15.3); libraries: ever larger ones (15.4); hyper_parameters: random configurations; depth: the
    notebook's v0 to v7; extensions: input and gradient, stacked or embedded (15.5); fixed_set: 1,000 curves
    that stay the same, beside standard classifiers; regularised: a network that fits a target with latents
    that a trained critic judges (7)."""
    preset: Literal["sample", "study", "seed"] = "sample"
    """sample: few points, epochs and configurations; study: more, for an hour on two cores; seed: the
    notebook's numbers and full spaces, for an accelerator."""
    points: Annotated[int, at_least(3)] | None = None
    """Points of every curve but those of fixed sets, which have 100; by default the preset's."""
    epochs: Annotated[int, at_least(10)] | None = None
    """Epochs of training a critic, but on fixed sets, which have their own; by default the preset's."""
    seeds: Count | None = None
    """Seeds of every configuration, but one in the study of hyper-parameters and ten fixed sets; by default
    the preset's."""
    configurations: Count | None = None
    """Configurations drawn in the study of hyper-parameters; by default the preset's."""
    updates: Annotated[int, at_least(10)] | None = None
    """Updates of a network that fits a target; by default the preset's."""
    seed: Seed = 0  # Base PRNG seed.
    out: Path = Path("results/symbolic_discriminator")
    """Folder for config.json, results.nc, summary.json and the figures."""

    def check(self) -> None:
        self.expect_distinct("studies")
