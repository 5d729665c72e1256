"""Learning curves of online rules on three memory tasks: `python -m benchmarks.online`.

Trains networks of leaky units on batches from 2,000 sequences, with a loss at the steps that have a target,
and measures accuracy on 500 other sequences. As a baseline, `readout alone` trains only the readout, on
random weights of the cell. RTRL is not included: with one update per batch of sequences, its gradient equals
that of backprop.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from tqdm import tqdm

import lax_learning as ll
from benchmarks import machine
from experiments import harness, registry, reporting
from experiments.settings import Count, Options

BATCH, TRAIN, TEST, ALPHA = 50, 2000, 500, 0.2
TASKS: dict[str, tuple[Callable[..., ll.data.Sequences], float]] = {  # with the accuracy at chance
    "delayed match": (ll.data.delayed_match, 0.5),
    "copy": (ll.data.copy_memory, 0.25),
    "cue accumulation": (ll.data.cue_accumulation, 0.5),
}


def readout_alone(net: ll.online.Recurrent, loss: ll.Loss) -> ll.Rule:
    """Backprop for the readout; gradients of the cell are zero."""
    exact = ll.backprop(net, loss)

    def value_and_grad(*args: Any) -> tuple[Any, Any, Any]:
        value, grads, state = exact.value_and_grad(*args)
        return value, {**grads, "cell": jax.tree.map(jnp.zeros_like, grads["cell"])}, state

    return exact._replace(value_and_grad=value_and_grad)


OWN: dict[str, Callable[..., ll.Rule]] = {
    "readout alone": readout_alone,
    "rflo, symmetric": partial(ll.online.rflo, feedback_init=None),
}
"""Rules of this benchmark, in addition to those of the registry."""
NAMES = (*OWN, *registry.RULES, *registry.ONLINE)
SIGMA = 0.3
RATE, RATES = 0.01, {"three_factor": 0.003}
"""Learning rate of Adam, and exceptions by rule."""


@dataclass(frozen=True)
class Config(Options):
    """Measure learning curves of online rules on memory tasks."""

    seeds: Count = 32
    """Seeds per rule, for initial weights, feedback, noise and order of the examples."""
    units: Count = 32
    """Number of leaky units."""
    updates: Count = 1000
    """Number of updates, one per batch."""
    points: Count = 20
    """Accuracies per learning curve after the first one; a divisor of updates."""
    rules: tuple[str, ...] = ("readout alone", "backprop", "rflo", "rflo, symmetric", "eprop", "three_factor")
    """Rules of experiments/registry.py (a wrong name lists them), 'readout alone' or 'rflo, symmetric'."""
    tasks: tuple[str, ...] = tuple(TASKS)
    """Tasks to run: 'delayed match', copy, 'cue accumulation'."""
    seed: int = 0
    """Base PRNG seed."""
    out: Path = Path("results/online")
    """Folder for online.json and online.png; existing files are replaced."""

    def check(self) -> None:
        for name, known in (("rules", NAMES), ("tasks", TASKS)):
            self.expect(name, f"some of {', '.join(known)}", set(getattr(self, name)) <= set(known))
            self.expect_distinct(name)
        self.expect("points", f"a divisor of {self.updates} updates", self.updates % self.points == 0)


def curves(config: Config, task: str, rule: str) -> np.ndarray:
    """Returns accuracies `[seed, point]`."""
    train_key, test_key, key = jax.random.split(jax.random.key(config.seed), 3)
    draw, _ = TASKS[task]
    make = registry.rule_of(OWN.get(rule, rule), sigma=SIGMA)
    train, test = draw(train_key, TRAIN), draw(test_key, TEST)
    counts = np.asarray(test.mask[0])
    net = ll.online.leaky_rnn((train.x.shape[-1], config.units, train.y.shape[-1]), alpha=ALPHA)

    def evaluate(key: Any, params: Any, state: Any, data: Any) -> Any:
        return ll.accuracy(net.apply(params, data.test.x)[:, counts], data.test.y[:, counts])

    every = config.updates // config.points
    run = ll.make_train(
        make(net, ll.softmax_cross_entropy), optax.adam(RATES.get(rule, RATE)), init=net.init,
        num_updates=config.updates, batch_size=BATCH, evaluate=evaluate, every=every,
    )  # fmt: skip
    data = ll.data.Splits(*(ll.data.Dataset(part.x, part.y) for part in (train, test, test)))
    side_by_side = ll.ensemble(lambda key, data: run(key, data).evaluations, batch_size=config.seeds)
    return np.asarray(side_by_side(jax.random.split(key, config.seeds), data))


def run(config: Config) -> dict[tuple[str, str], np.ndarray]:
    """Runs all rules on all tasks, prints the table, writes JSON and figure; returns all accuracies."""
    harness.make_folder(config.out)
    found: dict[tuple[str, str], np.ndarray] = {}
    with tqdm([(task, rule) for task in config.tasks for rule in config.rules], unit="run") as progress:
        for task, rule in progress:
            progress.set_description(f"{task}: {rule}")
            found[task, rule] = curves(config, task, rule)
            write(config, found)
    at_end = {task: {rule: found[task, rule][:, -1] for rule in config.rules} for task in config.tasks}
    columns = [map(reporting.cell, reporting.summary_rows("", of_rules)) for of_rules in at_end.values()]
    print(reporting.table(["rule", *config.tasks], zip(config.rules, *columns, strict=True)))
    return found


def write(config: Config, found: dict[tuple[str, str], np.ndarray]) -> None:
    """Writes all measurements so far, and the figure."""
    updates = np.linspace(0, config.updates, config.points + 1)
    rows = []
    for (task, rule), accuracies in found.items():
        mean, *ends, _ = np.array([reporting.interval(point) for point in accuracies.T]).T
        rows.append({
            "task": task, "chance": TASKS[task][1], "rule": rule, "rate": RATES.get(rule, RATE),
            "mean": mean.round(4).tolist(), "ci95": np.transpose(ends).round(4).tolist(),
            "last": accuracies[:, -1].astype(float).round(3).tolist(),
        })  # fmt: skip
    machine.write(config, "online", updates=updates.tolist(), rows=rows)
    figure, all_axes = plt.subplots(1, len(config.tasks), figsize=(3.4 * len(config.tasks), 3), squeeze=False)
    for axes, task in zip(all_axes[0], config.tasks, strict=True):
        for i, rule in enumerate(config.rules):
            if (task, rule) in found:
                reporting.band(axes, updates, found[task, rule], label=rule, color=f"C{i}")
        axes.axhline(TASKS[task][1], color="0.6", linestyle=":")
        axes.set(title=task, xlabel="updates", ylabel="test accuracy", ylim=(0, 1.02))
    all_axes[0][0].legend(fontsize="x-small", loc="lower right")
    machine.save(figure, config.out / "online.png")


STOPPED = "measurements so far are in --out"
main = partial(machine.command_line, "online", Config, run, stopped=STOPPED)

if __name__ == "__main__":
    harness.use_all_cores(compile_quickly=False)
    sys.exit(main())
