"""Settings and command-line options of the plasticity-transfer experiment."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from experiments.settings import Count, Positive, Seed, Settings, Share

ModelName = Literal[
    "rnn", "pre_post_l2", "pre_post_l3", "pre_post_l4", "pre_post_count_l2", "pre_post_count_l3",
    "pre_post_count_l4", "pre_post_percent_l2", "post_count_l2", "gradient_descent_l2",
]  # fmt: skip


class Preset(NamedTuple):
    """Settings of a `--preset`."""

    data: str | None  # source of the images; None if --data is required
    train_samples: int  # images of the downstream pass
    test_samples: int  # test images
    rule_epochs: int  # passes of meta-learning through the upstream points
    rnn_samples: str  # samples from which the recurrent network learns
    rnn_rows: str  # output rows that the recurrent network changes
    descent_batch: int  # batch size of gradient descent
    descent_rate: float  # learning rate of gradient descent


PRESETS = {
    "sample": Preset("sample", 4_000, 500, 6, "every", "all", 100, 1e-2),
    "seed": Preset(None, 60_000, 10_000, 50, "every", "all", 256, 5e-3),
    "assemblies": Preset(None, 10_000, 3_333, 70, "misclassified", "two", 100, 1e-2),
}


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Meta-learn plasticity tables upstream, on half-spaces, and use them downstream, on MNIST."""

    PRESETS = PRESETS

    models: tuple[ModelName, ...] = ModelName.__args__  # type: ignore[attr-defined]
    """rnn: a recurrent graph; pre_post to post_count: networks with 2 to 4 hidden layers (l2 to l4),
    named by the activity on which their tables depend; gradient_descent: by Adam, without tables."""
    preset: Literal["sample", "seed", "assemblies"] = "sample"
    """sample: 4,000 images, 6 rule epochs, offline; seed: 60,000 images, 50 rule epochs, as in the notebook;
    assemblies: 10,000 images, 70 rule epochs, as in the later notebooks. The last two need --data."""
    seeds: Count = 8  # Number of upstream seeds, for half-space, network and order of the points.
    subseeds: Count = 2  # Downstream seeds per upstream seed, for network and order of the images.
    seed: Seed = 0  # Base PRNG seed.
    data: str | None = None
    """sample: 5,000 MNIST images, offline; FOLDER: MNIST as IDX files or prepared tfds data;
    tfds: default folder of tensorflow-datasets; download: fetch IDX files. By default that of --preset."""
    problem: Literal["half_space", "relu_net"] = "half_space"
    """Labels of upstream points. half_space: by a random half-space; relu_net: by a random ReLU network."""
    features: Count = 16  # Dimension of the upstream points.
    points: tuple[Count, Count] = (7_500, 2_500)  # Numbers of upstream training and test points.
    batch_size: Count = 100  # Upstream points per update of the tables.
    learning_rate: Positive = 0.01  # Learning rate of Adam in meta-learning.
    rule_epochs: Count | None = None
    """Passes of meta-learning through the upstream training points; by default those of --preset."""
    width: Count = 100  # Units per hidden layer, or of the recurrent graph.
    cap: Count = 50  # Maximum number of units per layer that fire at once.
    edge_probability: Share = 0.5  # Probability of each synapse.
    hidden_start: Literal["constant", "normal"] = "constant"
    """Initial hidden tables of feed-forward networks.
    constant: 0.4, as in the published code; normal: drawn from N(0, 1), as in an earlier version."""
    estimator: Literal["backprop", "forward_gradient", "weight_perturbation"] = "backprop"
    """Estimator of the meta-gradient."""
    double_softmax: bool = True  # Apply the cross-entropy to softmax outputs, as the published code does.
    attempts: Count = 2
    """Maximum number of upstream runs per seed until it reaches --least-accuracy
    (no limit in the notebook, 3 in the later ones)."""
    least_accuracy: Share = 0.7
    """Balanced test accuracy below which an upstream run is repeated.
    Results are given with and without repetitions."""
    evaluations: Count = 10  # Number of evaluations during the downstream pass.
    out: Path = Path("results/plasticity_transfer")
    """Folder for config.json, results.nc, summary.json and the figures."""

    def check(self) -> None:
        self.expect_distinct("models")
        self.expect("width", f"at least the cap of {self.cap}", self.width >= self.cap)
        self.expect("points", f"at least a batch of {self.batch_size}", self.points[0] >= self.batch_size)
        named = f"a source of all of MNIST with --preset {self.preset}"
        self.expect("data", named, self.chosen.data is not None)
