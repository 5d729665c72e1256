"""Bits per character of a small language model under four rules: `python -m benchmarks.language_model`.

Trains the transformer of `characters.py` and measures bits per character of held-out text, compared with
unigram and bigram models. The passes of a rule are its matrix products relative to those of a forward pass.
Learning rates were chosen among values a factor of two or three apart, with one seed, on the validation text.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from tqdm import tqdm

import lax_learning as ll
from benchmarks import machine
from benchmarks.characters import CONTEXT, bits, entropies, language_model, read_text, windows
from benchmarks.work import work_of
from experiments import harness, reporting
from experiments.settings import Count, Options


class Run(NamedTuple):
    """Training with one rule."""

    make: Callable[[ll.Model, ll.Loss], ll.Rule]  # `(model, loss) -> rule`
    rate: float  # initial learning rate of Adam, with cosine decay to 0
    batch: int  # windows per update
    updates: int  # number of updates


RUNS = {
    "backprop": Run(ll.backprop, 0.01, 128, 600),
    "weight mirror": Run(partial(ll.weight_mirror, optimizer=optax.sgd(0.5)), 0.01, 128, 600),
    "node perturbation": Run(
        partial(ll.node_perturbation, sigma=0.02, noise="rademacher"), 0.003, 128, 1000
    ),
    "low-rank perturbation": Run(
        partial(ll.weight_perturbation, sigma=0.01, rank=1, num_samples=16, difference="central"),
        0.012, 64, 300,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Config(Options):
    """Train a small language model with backprop and with rules that do without it."""

    seeds: Count = 4
    """Seeds per rule, for initial weights, feedback, noise and order of the windows."""
    points: Count = 10
    """Measurements per learning curve after the first one."""
    shorter: Count = 1
    """Factor by which the numbers of updates are divided."""
    rules: tuple[str, ...] = tuple(RUNS)
    """Rules to run, each name in quotes."""
    seed: int = 1
    """Base PRNG seed."""
    out: Path = Path("results/language_model")
    """Folder for language_model.json, written after every rule, and language_model.png."""
    resume: bool = False
    """Keep results in --out that were measured with the same options."""

    def check(self) -> None:
        self.expect("rules", f"some of {', '.join(RUNS)}", set(self.rules) <= set(RUNS))
        self.expect_distinct("rules")

    def updates(self, rule: str) -> int:
        """Number of updates of a rule, a multiple of the number of measurements."""
        return max(1, RUNS[rule].updates // self.shorter // self.points) * self.points


def passes(model: ll.Model, run: Run) -> float:
    """Returns the matrix products of an update, relative to those of a forward pass of its batch."""
    key, x = jax.random.key(0), jnp.zeros((run.batch, CONTEXT), int)
    params, rule = model.init(key), run.make(model, bits)
    update = jax.jit(rule.value_and_grad).trace(key, params, rule.init(key, params, x), x, x)
    return work_of(update).flops / work_of(jax.jit(model.apply).trace(params, x)).flops


def measure(config: Config, rule: str, data: ll.data.Splits) -> dict[str, Any]:
    """Returns the results of a rule, with its learning curve of bits by seed."""
    model, run, updates = language_model(), RUNS[rule], config.updates(rule)

    def evaluate(key: Any, params: Any, state: Any, data: Any) -> Any:
        return bits(model.apply(params, data.test.x), data.test.y).mean()

    optimizer = optax.adam(optax.cosine_decay_schedule(run.rate, updates))
    train = ll.make_train(
        run.make(model, bits), optimizer, init=model.init, num_updates=updates, batch_size=run.batch,
        evaluate=evaluate, every=updates // config.points,
    )  # fmt: skip
    side_by_side = ll.ensemble(lambda key, data: train(key, data).evaluations)
    began = time.process_time()
    found = np.asarray(side_by_side(jax.random.split(jax.random.key(config.seed), config.seeds), data))
    return {
        "rule": rule, "rate": run.rate, "batch": run.batch, "updates": updates,
        "passes": round(passes(model, run), 2), "cpu_seconds": round(time.process_time() - began),
        "bits": np.round(found.astype(float), 4).tolist(),
    }  # fmt: skip


def run(config: Config) -> list[dict[str, Any]]:
    """Runs all rules that have no kept results, prints the table, and writes JSON and figure."""
    harness.make_folder(config.out)
    text, path = read_text(), config.out / "language_model.json"
    unigram, bigram = entropies(text.train, text.test)
    head = {
        "config": {name: getattr(config, name) for name in ("seeds", "points", "shorter", "seed")},
        "characters": {part: len(getattr(text, part)) for part in ("train", "validation", "test")},
        "weights": sum(leaf.size for leaf in jax.tree.leaves(language_model().init(jax.random.key(0)))),
        "unigram": round(unigram, 4),
        "bigram": round(bigram, 4),
        "machine": machine.describe_machine(),
        "versions": harness.versions(),
    }
    held = json.loads(path.read_text()) if config.resume and path.exists() else {"rows": ()}
    same = all(held.get(name) == value for name, value in head.items())
    found = {row["rule"]: row for row in held["rows"] if same}
    data = ll.data.Splits(*map(windows, text[:3]))
    for rule in tqdm([rule for rule in config.rules if rule not in found], unit="rule"):
        found[rule] = measure(config, rule, data)
        rows = [found[rule] for rule in config.rules if rule in found]
        harness.write_json(path, {**machine.head(), **head, "rows": rows})
    rows = [found[rule] for rule in config.rules]
    machine.save(figure(rows, unigram, bigram), config.out / "language_model.png")
    print(f"single characters {unigram:.3f}, pairs {bigram:.3f} bits")
    at_end = {row["rule"]: np.array(row["bits"])[:, -1] for row in rows}
    cells = [
        (of_end["metric"], reporting.cell(of_end), f"{row['passes']:g}", str(row["updates"]),
         f"{millions(row)[-1]:.3g}", str(row["cpu_seconds"]))
        for row, of_end in zip(rows, reporting.summary_rows("", at_end), strict=True)
    ]  # fmt: skip
    header = ("rule", "bits", "passes per update", "updates", "10^6 characters passed forward", "CPU seconds")
    print(reporting.table(header, cells))
    return rows


def millions(row: dict[str, Any]) -> np.ndarray:
    """Returns characters passed forward up to each measurement, in millions."""
    each = row["passes"] * row["batch"] * CONTEXT / 1e6
    return each * np.linspace(0, row["updates"], len(row["bits"][0]))


def figure(rows: list[dict[str, Any]], unigram: float, bigram: float) -> Any:
    """Draws bits against characters passed forward."""
    drawn, axes = plt.subplots(figsize=(8.5, 4.2), layout="constrained")  # also in the documentation
    for row in rows:
        reporting.band(axes, millions(row)[1:], np.array(row["bits"])[:, 1:], label=row["rule"], marker=".")
    for name, value in (("single characters", unigram), ("pairs", bigram)):
        axes.axhline(value, color="0.5", linestyle=":")
        axes.text(
            1, value, f"{name} ", transform=axes.get_yaxis_transform(), ha="right", va="bottom", color="0.4"
        )
    seeds = max((len(row["bits"]) for row in rows), default=0)
    return machine.finished(
        drawn, f"mean and 95 % interval over {seeds} seeds; dotted: unigram and bigram models",
        title=f"A transformer on {CONTEXT} characters of Python's documentation",
        xlabel="characters passed forward (10⁶)", ylabel="bits per held-out character",
    )  # fmt: skip


STOPPED = "the same command with --resume continues after the last finished rule"
main = partial(machine.command_line, "language_model", Config, run, stopped=STOPPED)

if __name__ == "__main__":
    harness.use_all_cores(compile_quickly=False)
    sys.exit(main())
