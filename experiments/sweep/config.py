"""The settings of a sweep, from which its command line is made."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from experiments.settings import Count, Limits, Options, Seed

SamplerName = Literal["tpe", "random", "grid", "cmaes"]
PrunerName = Literal["median", "halving", "none"]
ExperimentName = Literal[
    "microlearning", "birth_death", "decorrelation", "plasticity_transfer", "symbolic_discriminator"
]


@dataclass(frozen=True)
class Config(Options):
    """Sweep over the hyper-parameters of an experiment: many trials and seeds in one compiled program."""

    experiment: ExperimentName
    """Experiment that is swept over."""
    space: Path
    """TOML file: for each hyper-parameter a value, { choices = [...] }, or { low = ..., high = ... } with
    log = true for a logarithmic scale and points = N for a grid."""
    trials: Count = 64
    """Trials in all, of all workers together; with more of them a finished study goes on."""
    seeds: Count = 4
    """Seeds of every trial, the same for all: the objective is the median over them."""
    seed: Seed = 0
    """The seed of the seeds, and of the sampler."""
    sampler: SamplerName = "tpe"
    """Sampler that chooses trials."""
    pruner: PrunerName = "median"
    """Pruner that stops trials early: below the median of the finished ones at the same chunk; by successive
    halving; or none but those that are not finite."""
    batch: Count = 32
    """Trials asked for at once, which then do not know of each other's scores."""
    side_by_side: Count = 4
    """Trials in one program: an accelerator has room for a whole batch."""
    storage: str | None = None
    """URL of a database, sqlite:///study.db for example, for many workers; by default a journal in --out,
    which workers of one host can share."""
    study: str | None = None
    """Name of the study in the storage; by default the experiment's."""
    patience: Annotated[float, Limits(0, 1e9, open_at=(True, False))] = 60.0
    """Seconds without a sign of life after which the trials of a worker are taken up by others."""
    out: Path = Path("results/sweep")
    """Folder for config.json, the journal, results.nc, summary.json and the figures."""
    resume: bool = False
    """Go on with the study that stands in the folder, if there is one, also beside other workers."""

    def deciding(self) -> dict[str, Any]:
        """The fields that decide what a trial gives; the space is added as it was read."""
        names = ("experiment", "seeds", "seed", "sampler", "pruner")
        return {name: getattr(self, name) for name in names}
