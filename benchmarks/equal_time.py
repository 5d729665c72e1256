"""Cosine to the gradient against seconds, for perturbation rules that average more and more draws.

    python -m benchmarks.equal_time

Estimates the gradient of one batch of MNIST images for a 784-500-10 tanh network at its initial weights. Each
number of draws is one compiled program. Its cosine to backprop is measured over seeds of weights and noise,
and its time is the median of several calls, alternating between rules.
"""

import itertools
import sys
from dataclasses import dataclass
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
from benchmarks import machine
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

    gradients = [exact.value_and_grad(keys[0], params, (), x, y)[1] for params in weights]
    cosine = jax.jit(ll.metrics.cosine_similarity)
    given = list(zip(noise_keys, weights, strict=True))
    rows = []
    for draws in tqdm([4**power for power in range(64) if 4**power <= config.draws], unit="count"):
        programs = {name: program_of(name, draws) for name in RULES}
        cosines = {
            name: [float(cosine(program(*each), g)) for each, g in zip(given, gradients, strict=True)]
            for name, program in programs.items()
        }
        turns = [
            {name: seconds_per_call(partial(program, *each)) for name, program in programs.items()}
            for each in itertools.islice(itertools.cycle(given), config.repeats)
        ]
        for name in RULES:
            seconds = median(turn[name] for turn in turns)
            rows.append({"rule": name, "draws": draws, "seconds": seconds, "cosines": cosines[name]})
    machine.write(config, "equal_time", rows=rows)
    machine.save(figure(rows, config), config.out / "equal_time.png")
    cells = [
        (row["rule"], str(row["draws"]), f"{1e3 * row['seconds']:.3g}", f"{np.mean(row['cosines']):.3f}")
        for row in rows
    ]
    print(reporting.table(("rule", "draws", "ms", "cosine"), cells))
    return rows


def figure(rows: list[dict[str, Any]], config: Config) -> Figure:
    """Draws cosine against seconds, with one line per rule."""
    drawn, axes = plt.subplots(figsize=(8, 5))
    for name in RULES:
        mine = [row for row in rows if row["rule"] == name]
        seconds = np.array([row["seconds"] for row in mine])
        of_seeds = np.array([row["cosines"] for row in mine]).T
        reporting.band(axes, seconds, of_seeds, label=name.replace("_", " "), marker="o", markersize=4)
    note = f"mean and 95 % interval over {config.seeds} seeds; points: 1, 4, 16, ... draws; "
    return machine.finished(
        drawn, note + f"time: median of {config.repeats} calls",
        title=f"Cosine to the gradient at equal time: 784-{config.hidden}-10, {config.batch_size} images",
        xlabel="seconds per averaged estimate, without compilation", ylabel="cosine to backprop",
        xscale="log", yscale="log",
    )  # fmt: skip


main = partial(machine.command_line, "equal_time", Config, run, stopped=machine.NOT_RESUMED)

if __name__ == "__main__":
    sys.exit(main())
