"""The settings of the microlearning experiment, from which its command line is made."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

RuleName = Literal[
    "backprop",
    "kolen_pollack",
    "feedback_alignment",
    "direct_feedback_alignment",
    "sign_symmetry_unit",
    "sign_symmetry_fixed",
    "sign_symmetry_redrawn",
    "node_perturbation",
    "forward_gradient",
    "weight_perturbation",
]


@dataclass(frozen=True)
class Config:
    """Compare credit assignment rules on MNIST over many seeds: accuracy, SNR, cosine, bias and variance."""

    rules: tuple[RuleName, ...] = RuleName.__args__  # type: ignore[attr-defined]
    """Rules to compare."""
    seeds: int = 8
    """Number of seeds: initial weights, noise and order of the examples."""
    seed: int = 0
    """The seed of the seeds."""
    epochs: int = 20
    """Passes through the training images."""
    batch_size: int = 100
    """Images an update."""
    hidden: tuple[int, ...] = (500,)
    """Widths of the hidden layers."""
    scale: Literal["tutorial", "gradient", "matched"] = "matched"
    """tutorial: the notebook's sums over the batch, with its form of node perturbation; gradient: all rules
    in the units of the gradient; matched: the same, each rule with the step that lowers the loss most at
    initialisation."""
    learning_rate: float | None = None
    """Learning rate of all rules; by default 0.001 (tutorial) or 0.1 (gradient); none with matched."""
    sigma: float = 0.01
    """Standard deviation of the noise of the perturbation rules (the tutorial has 0.1)."""
    num_samples: int = 1
    """Noise draws an update, averaged."""
    noise: Literal["rademacher", "normal"] = "rademacher"
    """Distribution of the noise (the tutorial's is normal)."""
    data: str = "sample"
    """sample: 5,000 MNIST images, offline; a folder of IDX files or of prepared tfds data; tfds: the prepared
    default folder of tensorflow-datasets; download: fetch the IDX files."""
    test_images: int = 1000
    """Images to test and measure on, drawn for each seed (the sample has 500)."""
    snr_images: int = 250
    """Images over which the gradient SNR at initialisation is taken (the tutorial has 1000)."""
    draws: int = 32
    """Noise draws for bias and variance at initialisation, on one batch."""
    out: Path = Path("results/microlearning")
    """Folder for config.json, results.nc, summary.json and the figures."""
    resume: bool = False
    """Go on with the run that stands in the folder, if there is one."""

    def __post_init__(self) -> None:
        least = dict.fromkeys(("seeds", "epochs", "batch_size", "num_samples", "test_images"), 1)
        for name, minimum in {**least, "snr_images": 3, "draws": 3}.items():
            self._expect(name, f"at least {minimum}", getattr(self, name) >= minimum)
        self._expect(
            "rules", "each rule at most once and one at least", len(set(self.rules)) == len(self.rules) > 0
        )
        self._expect("hidden", "widths of at least 1", all(width >= 1 for width in self.hidden))
        self._expect("sigma", "a number > 0", self.sigma > 0)
        if self.scale == "matched":
            self._expect("learning_rate", "none with --scale matched", self.learning_rate is None)
        else:
            self._expect(
                "learning_rate", "a number > 0", self.learning_rate is None or self.learning_rate > 0
            )

    def _expect(self, name: str, expected: str, holds: bool) -> None:
        if not holds:
            raise ValueError(f"--{name.replace('_', '-')}: expected {expected}, got {getattr(self, name)}")

    def deciding(self) -> dict[str, Any]:
        """The fields that decide the results."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("out", "resume")}
