"""Settings and command-line options of the microlearning experiment."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from experiments.registry import ONLINE, check_name
from experiments.settings import Count, Limits, NotNegative, Positive, Seed, Settings, at_least

NetworkName = Literal["dense", "convolutional", "recurrent", "leaky"]
HIDDEN: dict[NetworkName, tuple[int, ...]]
HIDDEN = {"dense": (500,), "convolutional": (6, 16, 120, 84), "recurrent": (64,), "leaky": (64,)}
"""Default widths of the hidden layers."""

DEFAULT_RULES = (
    "backprop", "kolen_pollack", "feedback_alignment", "direct_feedback_alignment", "sign_symmetry_unit",
    "sign_symmetry_fixed", "sign_symmetry_redrawn", "node_perturbation", "forward_gradient",
    "weight_perturbation",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Compare credit assignment rules on MNIST over many seeds: accuracy, and quality of their gradients."""

    rules: tuple[str, ...] = DEFAULT_RULES
    """Rules to compare, from experiments/registry.py; an unknown name prints the list.
    Custom rules are given as MODULE:FUNCTION, where FUNCTION(model, loss) returns the rule.
    It also gets sigma, num_samples, noise, optimizer, decay and gain if it has arguments of these names."""
    seeds: Count = 8  # Number of seeds, for initial weights, noise and the order of examples.
    seed: Seed = 0  # Base PRNG seed.
    epochs: Count = 20  # Passes through the training images.
    batch_size: Count = 100  # Images per update.
    network: NetworkName = "dense"
    """dense: network of the Neuromatch tutorial, with squared error (the others use cross-entropy);
    convolutional: BioTorch's LeNet on images of 32 x 32; recurrent: reads images row by row;
    leaky: the same with one layer of leaky units, for rules that learn online."""
    hidden: tuple[Count, ...] | None = None
    """Widths of the hidden layers; by default 500 (dense) or 64 (recurrent, leaky).
    convolutional: channels of three layers, then widths of dense layers; by default 6 16 120 84."""
    scale: Literal["tutorial", "gradient", "matched"] = "matched"
    """tutorial: as in the tutorial, which sums over the batch and has its own form of node perturbation;
    gradient: all rules in the units of the gradient, the mean over the batch;
    matched: the same, each rule with the learning rate whose first step decreases the loss most."""
    learning_rate: Positive | None = None
    """Learning rate of all rules; by default 0.001 (tutorial) or 0.1 (gradient). Not allowed with matched."""
    drops: tuple[Count, ...] = ()  # Epochs after which the learning rate is divided by 10; by default none.
    momentum: Annotated[float, Limits(0, 1, open_at=(False, True))] = 0.0
    """Momentum of gradient descent; matched learning rates are multiplied by 1 - momentum."""
    weight_decay: NotNegative = 0.0
    """L2 weight decay, added to the gradients. Learned feedback decays as well; fixed feedback does not."""
    sigma: Positive = 0.01
    """Standard deviation of the noise of perturbation rules (0.1 in the tutorial)."""
    num_samples: Count = 1  # Noise draws averaged in each update.
    noise: Literal["rademacher", "normal"] = "rademacher"
    """Distribution of the noise (normal in the tutorial)."""
    data: str = "sample"
    """sample: 5,000 MNIST images, offline; FOLDER: a folder with MNIST as IDX files or prepared tfds data;
    tfds: the default folder of tensorflow-datasets; download: fetch the IDX files."""
    test_images: Count | None = None
    """Test images, drawn for each seed; by default 1000, or all if there are fewer (the sample has 500)."""
    snr_images: Annotated[int, at_least(3)] = 250
    """Images used to measure the SNR of the gradient at initialisation (1000 in the tutorial)."""
    draws: Annotated[int, at_least(3)] = 32
    """Noise draws used to measure bias and variance at initialisation, on one batch."""
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
            others = f"rules for --network {self.network}; {', '.join(ONLINE)} are for leaky"
            self.expect("rules", others, not ONLINE.keys() & set(self.rules))
        self.expect("drops", "increasing epochs", all(a < b for a, b in pairwise(self.drops)))
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
        """Fields that determine the results."""
        return {**super().deciding(), "hidden": self.widths}
