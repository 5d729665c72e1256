"""Cosine to the gradient against seconds, for perturbation rules that average more and more draws.

    python -m benchmarks.equal_time

Estimates the gradient of one batch of MNIST images for a 784-500-10 tanh network at its initial weights. Each
number of draws is one compiled program. Its cosine to backprop is measured over seeds of weights and noise,
and its time is the median of several calls, alternating between rules.
"""

import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

import lax_learning as ll
from benchmarks.machine import head
from benchmarks.pairs import seconds_per_call
from experiments import harness, reporting
from experiments.registry import rule_of
from experiments.settings import Count, Options, Positive

RULES = (
    "weight_perturbation", "weight_perturbation_signs", "weight_perturbation_low_rank", "node_perturbation",
    "forward_gradient", "forward_gradient_activities",
)  # fmt: skip


@dataclass(frozen=True)
class Config(Options):
    """Measure the cosine of averaged estimates to the gradient, and the time they take."""

    batch_size: Count = 32
    """Images in the batch."""
    hidden: Count = 500
    """Hidden units."""
    sigma: Positive = 0.01
    """Standard deviation of the noise."""
    draws: Count = 1_024
    """Largest number of averaged draws; the others are 1, 4, 16, ..."""
    seeds: Count = 8
    """Number of seeds for initial weights and noise."""
    repeats: Count = 7
    """Number of timed calls; the median is reported."""
    out: Path = Path("results/equal_time")
    """Folder for equal_time.json and equal_time.png; existing files are replaced."""


def run(config: Config) -> list[dict[str, Any]]:
    """Measures all rules, prints the table, and writes JSON and figure."""
    model = ll.mlp((784, config.hidden, 10), activation=jnp.tanh)
    data = jax.tree.map(jnp.asarray, ll.data.mnist(jax.random.key(0), "sample")).train
    config.expect("batch_size", f"at most {len(data.x)} images", config.batch_size <= len(data.x))
    harness.make_folder(config.out)
    x, y = data.x[: config.batch_size], data.y[: config.batch_size]
    keys, noise_keys = jax.random.split(jax.random.key(1), (2, config.seeds))
    weights = [model.init(key) for key in keys]
    exact = ll.backprop(model, ll.softmax_cross_entropy)

    def program_of(name: str, draws: int) -> Any:
        rule = rule_of(name, sigma=config.sigma, num_samples=draws)(model, ll.softmax_cross_entropy)

        def estimate(key: jax.Array, params: Any) -> Any:
            return rule.value_and_grad(key, params, (), x, y)[1]

        return jax.jit(estimate).lower(keys[0], weights[0]).compile()

    counts = [4**power for power in range(64) if 4**power <= config.draws]
    gradients = [exact.value_and_grad(keys[0], params, (), x, y)[1] for params in weights]
    cosine = jax.jit(ll.metrics.cosine_similarity)
    rows = []
    for draws in tqdm(counts, unit="count"):
        programs = {name: program_of(name, draws) for name in RULES}
        given = list(zip(noise_keys, weights, strict=True))
        cosines = {
            name: [float(cosine(programs[name](*given[i]), gradients[i])) for i in range(config.seeds)]
            for name in RULES
        }
        seconds: dict[str, list[float]] = {name: [] for name in RULES}
        for i in range(config.repeats):
            for name in RULES:
                call = partial(programs[name], *given[i % config.seeds])
                seconds[name].append(seconds_per_call(call))
        rows += [
            {"rule": name, "draws": draws, "seconds": median(seconds[name]), "cosines": cosines[name]}
            for name in RULES
        ]
    options = {name: value for name, value in asdict(config).items() if name != "out"}
    harness.write_json(config.out / "equal_time.json", {**head(), "config": options, "rows": rows})
    reporting.draw(figure(rows, config), config.out / "equal_time.png")
    cells = [
        (row["rule"], str(row["draws"]), f"{1e3 * row['seconds']:.3g}", f"{np.mean(row['cosines']):.3f}")
        for row in rows
    ]
    print(reporting.table(("rule", "draws", "ms", "cosine"), cells))
    return rows


def figure(rows: list[dict[str, Any]], config: Config) -> Figure:
    """Draws cosine against seconds, with one line per rule."""
    drawn, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name in RULES:
        mine = [row for row in rows if row["rule"] == name]
        seconds = np.array([row["seconds"] for row in mine])
        of_seeds = np.array([row["cosines"] for row in mine]).T
        reporting.band(axes, seconds, of_seeds, label=name.replace("_", " "), marker="o", markersize=4)
    axes.set(
        title=f"Cosine to the gradient at equal time: 784-{config.hidden}-10, {config.batch_size} images",
        xlabel="seconds per averaged estimate, without compilation", ylabel="cosine to backprop",
        xscale="log", yscale="log",
    )  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    reporting.footnote(
        drawn,
        f"mean and 95 % interval over {config.seeds} seeds; points: 1, 4, 16, ... draws; "
        f"time: median of {config.repeats} calls",
    )
    return drawn


main = partial(
    harness.command_line, "equal_time", Config, run, package="benchmarks", stopped="nothing is written"
)

if __name__ == "__main__":
    sys.exit(main())
