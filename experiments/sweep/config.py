"""Settings and command-line options of a sweep."""

import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, Literal

import tyro

from experiments.settings import Count, Limits, Options, Seed
from experiments.sweeping import Sweepable

OFFERED = sorted({path.parent.name for path in Path(__file__).parents[1].glob("*/__main__.py")} - {"sweep"})
_EXPERIMENT = f"Experiment to sweep over: {', '.join(OFFERED)}; or a module that defines a SWEEPABLE."


@dataclass(frozen=True)
class Config(Options):
    """Sweep over the hyper-parameters of an experiment: many trials and seeds in one compiled program."""

    experiment: Annotated[str, tyro.conf.arg(help=_EXPERIMENT)]
    space: Path
    """TOML file: NAME = a value, { choices = [...] } or { low = L, high = H }; an unknown NAME lists all.
    Add log = true for a logarithmic scale, and points = N for a grid."""
    trials: Count = 64
    """Total number of trials, over all workers. A larger number extends a finished study."""
    seeds: Count = 4  # Seeds per trial, the same for all trials; the objective is the median over seeds.
    seed: Seed = 0  # Base PRNG seed of the runs and of the sampler.
    sampler: Literal["tpe", "random", "grid", "cmaes"] = "tpe"
    """Optuna sampler that chooses the hyper-parameters of the trials."""
    pruner: Literal["median", "halving", "none"] = "median"
    """Pruner that stops trials early. median: if worse than the median of earlier trials at the same point;
    halving: by successive halving; none: only if the score is not finite."""
    batch: Count = 32  # Trials sampled together, before any of their scores is known.
    side_by_side: Count = 4  # Trials computed at once; on an accelerator, use up to --batch.
    storage: str | None = None
    """URL of a database for workers on several hosts, such as postgresql://USER@HOST/NAME;
    by default a journal file in --out, for workers on one host."""
    study: str | None = None  # Name of the study in the storage; by default that of the experiment.
    patience: Annotated[float, Limits(0, 1e9, open_at=(True, False))] = 60.0
    """Seconds without a heartbeat after which other workers take over the trials of a worker."""
    out: Path = Path("results/sweep")
    """Folder for config.json, the journal, results.nc, summary.json and the figures."""
    resume: bool = False  # Resume the study in --out, or join the workers that are running it.

    @cached_property
    def table(self) -> dict[str, Any]:
        """The space as it was read; raises ValueError for a file that is not TOML."""
        try:
            return tomllib.loads(self.space.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"--space: expected a TOML file, got {self.space} ({error.strerror})") from None
        except ValueError as error:
            raise ValueError(f"--space: expected valid TOML, got {self.space} ({error})") from None

    def deciding(self) -> dict[str, Any]:
        """Fields that determine the results of trials."""
        names = ("experiment", "seeds", "seed", "sampler", "pruner")
        return {**{name: getattr(self, name) for name in names}, "space": self.table}

    def sweepable(self) -> Sweepable:
        """Returns the `SWEEPABLE` of the experiment; raises ValueError if there is none."""
        name = f"experiments.{self.experiment}.__main__" if self.experiment in OFFERED else self.experiment
        try:
            return resolve_name(f"{name}:SWEEPABLE")
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            expected = f"one of {', '.join(OFFERED)}, or a module that defines a SWEEPABLE"
            got = f"{self.experiment!r} ({error})"
            raise ValueError(f"--experiment: expected {expected}, got {got}") from None
