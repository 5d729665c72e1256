"""Settings and command-line options of the symbolic discriminator experiment."""

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

    points: int  # points per curve
    epochs: int  # epochs of training a critic
    seeds: int  # seeds per configuration, except in hyper_parameters and fixed_set
    configurations: int  # configurations in hyper_parameters
    updates: int  # updates of a network that fits a target


PRESETS = {
    "sample": Preset(100, 500, 4, 64, 2_000),
    "study": Preset(100, 2_000, 4, 512, 20_000),
    "seed": Preset(700, 100_000, 8, 512, 20_000),
}


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Train and study critics that tell curves of formulas from those of untrained networks."""

    PRESETS = PRESETS

    studies: tuple[StudyName, ...] = StudyName.__args__  # type: ignore[attr-defined]
    """activations: curves of untrained networks and of the library (steps 15.1 and 15.2 of the notebook);
    accuracy: accuracy during training (15.3); libraries: increasingly large libraries (15.4);
    hyper_parameters: random configurations; depth: v0 to v7 of the notebook;
    extensions: points x or gradients as additional input (15.5); fixed_set: a fixed set of 1,000 curves;
    regularised: a network that fits a target, with latents judged by a trained critic (7)."""
    preset: Literal["sample", "study", "seed"] = "sample"
    """sample: 100 points, 500 epochs, 4 seeds, 64 configurations and 2,000 updates;
    study: 100, 2,000, 4, 512 and 20,000, half an hour on two cores;
    seed: 700, 100,000, 8, 512 and 20,000 and full search spaces, as in the notebook, for an accelerator."""
    points: Annotated[int, at_least(3)] | None = None
    """Points per curve, except in fixed_set (100 points); by default those of --preset."""
    epochs: Annotated[int, at_least(10)] | None = None
    """Training epochs of critics, except in fixed_set; by default those of --preset."""
    seeds: Count | None = None
    """Seeds per configuration, except in hyper_parameters (one) and fixed_set (ten);
    by default those of --preset."""
    configurations: Count | None = None
    """Number of configurations in hyper_parameters; by default that of --preset."""
    updates: Annotated[int, at_least(10)] | None = None
    """Updates of the network in regularised; by default those of --preset."""
    seed: Seed = 0  # Base PRNG seed.
    out: Path = Path("results/symbolic_discriminator")
    """Folder for config.json, results.nc, summary.json and the figures."""

    def check(self) -> None:
        self.expect_distinct("studies")
