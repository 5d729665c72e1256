"""Settings of the microlearning experiment, from which its command line is made."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from experiments.registry import ONLINE, check_name
from experiments.settings import Count, Limits, NotNegative, Positive, Seed, Settings, at_least

NetworkName = Literal["dense", "convolutional", "recurrent", "leaky"]
HIDDEN: dict[NetworkName, tuple[int, ...]]
HIDDEN = {"dense": (500,), "convolutional": (6, 16, 120, 84), "recurrent": (64,), "leaky": (64,)}
"""Widths of the hidden layers, if none are given."""

DEFAULT_RULES = (
    "backprop", "kolen_pollack", "feedback_alignment", "direct_feedback_alignment", "sign_symmetry_unit",
    "sign_symmetry_fixed", "sign_symmetry_redrawn", "node_perturbation", "forward_gradient",
    "weight_perturbation",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Compare credit assignment rules on MNIST over many seeds: accuracy, SNR, cosine, bias and variance."""

    rules: tuple[str, ...] = DEFAULT_RULES
    """Rules to compare: any of experiments/registry.py (a wrong name lists them), or one's own as
    MODULE:FUNCTION. FUNCTION(model, loss) returns the rule; sigma, num_samples, noise, optimizer, decay and
    gain are given to it by name if it has such arguments."""
    seeds: Count = 8  # Number of seeds: initial weights, noise and order of the examples.
    seed: Seed = 0  # Base PRNG seed.
    epochs: Count = 20  # Passes through the training images.
    batch_size: Count = 100  # Images an update.
    network: NetworkName = "dense"
    """dense: the tutorial's, with squared error; convolutional: BioTorch's LeNet on images of 32 x 32;
    recurrent: reads images row by row; leaky: the same with one layer of leaky units, given as its step, for
    the rules that learn online; all but the first with cross-entropy."""
    hidden: tuple[Count, ...] | None = None
    """Widths of the hidden layers; by default 500 (dense), 64 (recurrent, leaky), or 6 16 120 84
    (convolutional: three numbers of channels, and widths of dense layers)."""
    scale: Literal["tutorial", "gradient", "matched"] = "matched"
    """tutorial: the notebook's sums over the batch, with its form of node perturbation; gradient: all rules
    in the units of the gradient; matched: the same, each rule with the step that lowers the loss most at
    initialisation."""
    learning_rate: Positive | None = None
    """Learning rate of all rules; by default 0.001 (tutorial) or 0.1 (gradient); none with matched."""
    drops: tuple[Count, ...] = ()  # Epochs after which the learning rate is divided by 10.
    momentum: Annotated[float, Limits(0, 1, open_at=(False, True))] = 0.0
    """Of gradient descent; matched learning rates are multiplied by 1 - momentum."""
    weight_decay: NotNegative = 0.0
    """L2 decay, added to the gradients; learned feedback decays too, other feedback does not."""
    sigma: Positive = 0.01
    """Standard deviation of the noise of the perturbation rules (the tutorial has 0.1)."""
    num_samples: Count = 1  # Noise draws an update, averaged.
    noise: Literal["rademacher", "normal"] = "rademacher"
    """Distribution of the noise (the tutorial's is normal)."""
    data: str = "sample"
    """sample: 5,000 MNIST images, offline; a folder of IDX files or of prepared tfds data; tfds: the prepared
    default folder of tensorflow-datasets; download: fetch the IDX files."""
    test_images: Count | None = None
    """Images to test and measure on, drawn for each seed; by default 1000, or all if there are fewer (the
    sample has 500)."""
    snr_images: Annotated[int, at_least(3)] = 250
    """Images over which the gradient SNR at initialisation is taken (the tutorial has 1000)."""
    draws: Annotated[int, at_least(3)] = 32
    """Noise draws for bias and variance at initialisation, on one batch."""
    out: Path = Path("results/microlearning")
    """Folder for config.json, results.nc, summary.json and the figures."""

    def check(self) -> None:
        self.expect_distinct("rules")
        for rule in self.rules:
            check_name(self.option("rules"), rule)
        least_layers = {"dense": 0, "recurrent": 1, "leaky": 1, "convolutional": 3}[self.network]
        least = f"at least {least_layers} widths with --network {self.network}"
        self.expect("hidden", least, len(self.widths) >= least_layers)
        if self.network == "leaky":
            self.expect("hidden", "one width with --network leaky", len(self.widths) == 1)
        else:
            others = f"rules that take a --network {self.network}; {', '.join(ONLINE)} take leaky"
            self.expect("rules", others, not ONLINE.keys() & set(self.rules))
        self.expect("drops", "epochs in order", all(a < b for a, b in pairwise(self.drops)))
        before_the_end = f"epochs before the last, --epochs {self.epochs}"
        self.expect("drops", before_the_end, all(drop < self.epochs for drop in self.drops))
        if self.scale == "tutorial" and "node_perturbation" in self.rules:
            of_rule = "with node_perturbation and --scale tutorial"
            self.expect("network", f"dense {of_rule}", self.network == "dense")
            self.expect("num_samples", f"1 {of_rule}", self.num_samples == 1)
        if self.scale == "matched":
            self.expect("learning_rate", "none with --scale matched", self.learning_rate is None)

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the hidden layers."""
        return HIDDEN[self.network] if self.hidden is None else self.hidden

    def deciding(self) -> dict[str, Any]:
        """The fields that decide the results."""
        return {**super().deciding(), "hidden": self.widths}
