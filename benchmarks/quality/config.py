"""Command-line options of the benchmark of gradient quality."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from benchmarks.quality.rules import DENSE_ALONE, RULES
from benchmarks.quality.settings import SWEEPS, Setting
from experiments import memory
from experiments.registry import check_name
from experiments.settings import Count, Options, Seed, at_least, defaults_of

DEFAULT_RULES = (
    "backprop", "weight_perturbation", "forward_gradient", "node_perturbation", "node_perturbation_activity",
    "node_perturbation_tutorial", "forward_gradient_activities", "feedback_alignment",
    "direct_feedback_alignment", "sign_symmetry_unit", "kolen_pollack",
)  # fmt: skip


@dataclass(frozen=True)
class Config(Options):
    """Compare the gradients of all rules with backprop: cosine, SNR, bias, variance and cost.

    Varies one setting at a time, with the others at their defaults. Prints a table, and writes
    `gradient_quality.json`, a figure per sweep, bias against variance, and error against compute.
    """

    out: Path = Path("results/gradient_quality")
    """Folder for the JSON and the figures."""
    resume: bool = False
    """Resume the run in --out and keep its measurements."""
    rules: tuple[str, ...] = DEFAULT_RULES
    """Rules to measure: names in `experiments/registry.py`, or your own as MODULE:FUNCTION, where
    FUNCTION(model, loss) or FUNCTION(model, loss, sigma) returns the rule."""
    sweeps: tuple[str, ...] = ()
    """Settings to vary; default: all, or with --quick sigma, num_samples and updates."""
    seeds: Count = 8
    """Number of seeds, for weights, feedback weights, examples and noise."""
    seed: Seed = 0
    """Base PRNG seed."""
    draws: Annotated[int, at_least(3)] = 128
    """Number of gradients per seed from which moments are computed; at least 3."""
    examples: Annotated[int, at_least(3)] = 128
    """Number of examples per seed from which the SNR is computed; at least 3."""
    data: str = "sample"
    """Source of MNIST: "sample" (offline), or another source of `ll.data.mnist`."""
    pooled: int = 4
    """Size of the squares of pixels averaged into one; by default 28 x 28 pixels become 7 x 7."""
    quick: bool = False
    """Short form: 4 seeds, 16 draws, 32 examples, at most three values per sweep, and fewer sweeps."""
    setting: Setting = Setting()  # noqa: RUF009 (frozen)
    """Default values of the settings."""

    def check(self) -> None:
        self.expect("pooled", "a divisor of 28, at most 7", self.pooled in (1, 2, 4, 7))
        for rule in self.rules:
            check_name(self.option("rules"), rule, RULES.keys())
        self.expect("sweeps", f"some of {', '.join(SWEEPS)}", set(self.sweeps) <= set(SWEEPS))
        self.expect_distinct("rules")
        self.expect("sweeps", "each at most once", len(set(self.sweeps)) == len(self.sweeps))
        supported = self.setting.network == "dense" or not {*self.rules} & {*DENSE_ALONE}
        self.expect("rules", f"none that works only on dense networks: {', '.join(DENSE_ALONE)}", supported)

    def check_fits(self) -> None:
        """Raises ValueError unless the weights of all seeds and the batches of one seed fit into memory."""

        def needed(sizes: Mapping[str, int]) -> int:
            width, inputs = sizes["--setting.width"], (28 // self.pooled) ** 2
            weights = inputs * width + (sizes["--setting.depth"] - 1) * width**2
            seeds = min(sizes["--seeds"], 4) if self.quick else sizes["--seeds"]
            return 4 * (seeds * weights + sizes["--setting.batch_size"] * (inputs + width))

        given = {f"--setting.{n}": getattr(self.setting, n) for n in ("width", "depth", "batch_size")}
        defaults = {f"--setting.{name}": value for name, value in defaults_of(self.setting).items()}
        memory.check_fits(
            needed,
            {"--seeds": self.seeds, **given},
            {"--seeds": defaults_of(self)["seeds"], **defaults},
            lambda name: name.replace("_", "-"),
        )

    def chosen(self) -> tuple[str, ...]:
        """Returns the names of the sweeps to run."""
        return self.sweeps or (("sigma", "num_samples", "updates") if self.quick else tuple(SWEEPS))

    def numbers(self) -> dict[str, int]:
        """Returns numbers of seeds, draws and examples."""
        most = {"seeds": 4, "draws": 16, "examples": 32}
        return {k: min(getattr(self, k), v) if self.quick else getattr(self, k) for k, v in most.items()}

    def deciding(self) -> dict[str, Any]:
        """Returns the options that determine the results, for JSON."""
        held = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("out", "resume")}
        return {**held, **self.numbers(), "setting": vars(self.setting)}
