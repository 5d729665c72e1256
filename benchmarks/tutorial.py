"""Time of the microlearning tutorial's comparison of five rules, for many seeds at once.

    python -m benchmarks.tutorial --seeds 8

Trains backprop, Kolen-Pollack, feedback alignment, node and weight perturbation for three epochs (750 updates
on all of MNIST). Measures accuracy and cosine to backprop after every epoch, and the signal to noise over
examples before training. Each rule is one program; times exclude compilation.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import optax
from tqdm import tqdm

import lax_learning as ll
from benchmarks import machine
from benchmarks.cases import Sizes
from benchmarks.cases.microlearning import LEARNING_RATE, RULES, Weights, network_of
from experiments import harness, memory, reporting
from experiments.running import side_by_side
from experiments.settings import Count, Options, at_least, defaults_of
from lax_learning.metrics import cosine_similarity

COMPARED = (
    "backprop", "Kolen-Pollack", "feedback alignment", "node perturbation", "weight perturbation",
)  # fmt: skip


METRICS = ("accuracy", "cosine", "snr")


@dataclass(frozen=True)
class Config(Options):
    """Time the tutorial's comparison of five rules, with all seeds of a rule in one program."""

    seeds: Count = 1_000
    """Number of seeds for initial weights, noise and order of the images."""
    epochs: Count = 3
    """Number of passes through the training images."""
    hidden: Count = 500
    """Hidden units."""
    batch_size: Count = 200
    """Images per update."""
    examples: Annotated[int, at_least(3)] = 1_000
    """Number of test images for accuracy, cosine and signal to noise."""
    data: str = "sample"
    """Source of images: sample (5,000 MNIST images, offline), a folder of IDX files, tfds or download."""
    out: Path = Path("results/tutorial_time")
    """Folder for tutorial.json; an existing file is replaced."""


def comparison(name: str, config: Config, updates: int) -> Callable[..., dict[str, jax.Array]]:
    """Returns `(key, data) -> metrics` for one seed: accuracy and cosine `[1 + epochs]`, and SNR."""
    model = network_of(Sizes(hidden=config.hidden))
    rule, exact = RULES[name].make(model), ll.backprop(model, ll.squared_error)
    snr = RULES[name].snr(model)

    def evaluate(key: jax.Array, params: Any, state: Any, data: ll.data.Splits) -> dict[str, jax.Array]:
        x, y = data.test
        _, grads, _ = rule.value_and_grad(key, params, state, x, y)
        _, reference, _ = exact.value_and_grad(key, params, (), x, y)
        accuracy = ll.accuracy(model.apply(params, x), y)
        return {"accuracy": accuracy, "cosine": cosine_similarity(grads[0], reference[0])}

    train = ll.make_train(
        rule, optax.sgd(LEARNING_RATE), init=model.init, num_updates=config.epochs * updates,
        batch_size=config.batch_size, evaluate=evaluate, every=updates,
    )  # fmt: skip

    def run(key: jax.Array, data: ll.data.Splits) -> dict[str, jax.Array]:
        train_key, snr_key = jax.random.split(key)
        start = train.init(train_key, data)
        of_hidden = snr(snr_key, Weights(start.params, start.rule_state), *data.test)
        return {**train(train_key, data).evaluations, "snr": of_hidden}

    return run


def run(config: Config) -> list[dict[str, Any]]:
    """Runs and times the rules one after another, prints the table, and writes tutorial.json."""
    print(f"device: {machine.describe_machine()['device']}")
    data_key, key = jax.random.split(jax.random.key(0))
    data = jax.tree.map(jax.numpy.asarray, ll.data.mnist(data_key, config.data))
    data = data._replace(test=ll.data.Dataset(*(a[: config.examples] for a in data.test)))
    num_images = data.train.x.shape[0]
    config.expect("batch_size", f"at most {num_images} images", config.batch_size <= num_images)
    updates = num_images // config.batch_size

    def needed(sizes: Mapping[str, int]) -> int:
        """Bytes of the keys and results of all seeds, and of the weights of one."""
        return 4 * (sizes["seeds"] * (3 + 2 * sizes["epochs"]) + 2 * 794 * sizes["hidden"])

    sizes = {name: getattr(config, name) for name in ("seeds", "epochs", "hidden")}
    memory.check_fits(needed, sizes, defaults_of(config), config.option)
    harness.make_folder(config.out)
    keys = jax.random.split(key, config.seeds)
    total = memory.total_bytes()
    budget = 8e9 if total is None else 0.5 * total / jax.device_count()
    rows = []
    with tqdm(COMPARED, unit="rule") as progress:
        for name in progress:
            progress.set_description(name)
            program = ll.ensemble(
                comparison(name, config, updates), memory_budget=budget, batch_size=side_by_side()
            )
            began = time.perf_counter()
            program.compile(keys, data)
            compiled = time.perf_counter()
            found = jax.block_until_ready(program(keys, data))
            run_s = time.perf_counter() - compiled
            found = {metric: np.reshape(found[metric], (config.seeds, -1)) for metric in METRICS}
            means = {metric: float(values[:, -1].mean()) for metric, values in found.items()}
            rows.append({"rule": name, "compile_s": compiled - began, "run_s": run_s, **means})
    seconds = sum(row["run_s"] for row in rows)
    machine.write(config, "tutorial", updates=config.epochs * updates, run_s=seconds, rows=rows)
    header = ("rule", "compile (s)", "run (s)", "accuracy", "cosine", "SNR at the start")
    print(reporting.table(header, [
        (row["rule"], *("-" if np.isnan(row[c]) else f"{row[c]:.3g}" for c in tuple(row)[1:])) for row in rows
    ]))  # fmt: skip
    print(f"\n{config.seeds} seeds in {seconds:.1f} s, without compilation; tutorial.json: {config.out}")
    return rows


main = partial(machine.command_line, "tutorial", Config, run, stopped=machine.NOT_RESUMED)

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)  # an ensemble uses all of them
    sys.exit(main())
