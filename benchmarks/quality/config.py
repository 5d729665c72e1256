"""The command line of the benchmark of gradient quality."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.quality.rules import RULES
from benchmarks.quality.settings import SWEEPS, Setting, expect

DEFAULT_RULES = (
    "backprop",
    "weight_perturbation",
    "forward_gradient",
    "node_perturbation",
    "node_perturbation_activity",
    "node_perturbation_tutorial",
    "forward_gradient_activities",
    "feedback_alignment",
    "direct_feedback_alignment",
    "sign_symmetry_unit",
    "kolen_pollack",
)


@dataclass(frozen=True)
class Config:
    """Measure the gradients of all rules against backprop's: cosine, SNR, bias and variance, and their cost.

    One axis is varied at a time, the others stay at their defaults. Prints a table, and writes
    `gradient_quality.json` and one figure a sweep, besides bias against variance and error against compute.
    """

    out: Path = Path("results/gradient_quality")
    """Folder for the JSON and the figures."""
    resume: bool = False
    """Go on where the run in --out was stopped: what it measured is kept."""
    rules: tuple[str, ...] = DEFAULT_RULES
    """Rules to measure, names of `RULES`."""
    sweeps: tuple[str, ...] = ()
    """What to vary; by default everything, and with --quick what needs no further programs."""
    seeds: int = 8
    """Number of seeds: weights, feedback weights, examples and noise."""
    seed: int = 0
    """The seed of the seeds."""
    draws: int = 128
    """Gradients over which moments are taken, for every seed; at least 3."""
    examples: int = 128
    """Examples over which SNR is taken, for every seed; at least 3."""
    data: str = "sample"
    """MNIST: "sample" (offline), or a source of `ll.data.mnist`."""
    pooled: int = 4
    """Pixels, across and down, that are averaged into one: 28 x 28 become 7 x 7 by default."""
    quick: bool = False
    """Less of everything: 4 seeds, 16 draws, 32 examples, at most three values a sweep, and fewer sweeps."""
    setting: Setting = Setting()  # noqa: RUF009 (frozen)
    """The defaults of what is varied."""

    def __post_init__(self) -> None:
        for name, minimum in {"seeds": 1, "draws": 3, "examples": 3}.items():
            value = getattr(self, name)
            expect(name, f"an int of at least {minimum}", type(value) is int and value >= minimum, value)
        expect("pooled", "a divisor of 28, at most 7", self.pooled in (1, 2, 4, 7), self.pooled)
        for name, known in {"rules": RULES, "sweeps": SWEEPS}.items():
            asked = getattr(self, name)
            for one in asked:
                expect(name, f"names among {', '.join(known)}", one in known, one)
            expect(name, "each at most once", len(set(asked)) == len(asked), asked)
        expect("rules", "one at least", len(self.rules) > 0, self.rules)

    def chosen(self) -> tuple[str, ...]:
        """The names of the sweeps to run."""
        return self.sweeps or (("sigma", "num_samples", "updates") if self.quick else tuple(SWEEPS))

    def numbers(self) -> dict[str, int]:
        """Of seeds, draws and examples."""
        most = {"seeds": 4, "draws": 16, "examples": 32}
        return {k: min(getattr(self, k), v) if self.quick else getattr(self, k) for k, v in most.items()}

    def deciding(self) -> dict[str, Any]:
        """The fields that decide the results, as JSON holds them."""
        held = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("out", "resume")}
        return {**held, **self.numbers(), "setting": vars(self.setting)}
