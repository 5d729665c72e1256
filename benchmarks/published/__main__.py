"""Published test errors on MNIST, compared with ours: `python -m benchmarks.published --data FOLDER`.

FOLDER contains MNIST's four IDX files. Each row is one rule in one published setting; `--resume` continues an
interrupted run at its last checkpoint.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from tqdm import tqdm

import lax_learning as ll
from benchmarks import machine
from benchmarks.published import report
from benchmarks.published.entries import ENTRIES, Entry, make_rule
from experiments import harness, memory
from experiments.running import Run, run_members
from experiments.settings import Count, Seed, Settings


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Train in published settings, and print our test errors next to the published ones."""

    rows: tuple[str, ...] = tuple(ENTRIES)
    """Rows of benchmarks/published/entries.py; default: all."""
    seeds: Count = 4
    """Number of seeds for initial weights, feedback, noise and order of the images."""
    seed: Seed = 0
    """Base PRNG seed."""
    epochs: Count | None = None
    """Epochs per run; the schedule is rescaled to them. Default: those of the row."""
    data: str = "sample"
    """Folder of MNIST's IDX files, tfds or download. Results on sample (5,000 images) are not comparable."""
    out: Path = Path("results/published")
    """Folder for config.json, results.nc, summary.json, table.md and the figure."""

    def check(self) -> None:
        self.expect_distinct("rows")
        self.expect("rows", f"some of {', '.join(ENTRIES)}", set(self.rows) <= ENTRIES.keys())

    def epochs_of(self, row: str) -> int:
        """Returns the number of epochs of a row."""
        return self.epochs or ENTRIES[row].recipe.epochs


def load(config: Config) -> ll.data.Splits:
    """Loads all training images, including those usually held out for validation, and the test images."""
    train, validation, test = ll.data.mnist(jax.random.key(config.seed), config.data)
    whole = ll.data.Dataset(*(np.concatenate(both) for both in zip(train, validation, strict=True)))
    largest = max(ENTRIES[row].recipe.batch_size for row in config.rows)
    config.expect("data", f"at least a batch of {largest} images", len(whole.x) >= largest)
    return ll.data.Splits(whole, test, test)


def training(entry: Entry, epochs: int, num_images: int) -> Run:
    """Training of one seed, in steps of one epoch, each followed by the error on the test images."""
    recipe = entry.recipe
    per_epoch, model = num_images // recipe.batch_size, recipe.model
    optimizer = recipe.optimizer(per_epoch, epochs)
    train = ll.make_train(
        make_rule(entry, model, optimizer), optimizer, init=model.init, num_updates=epochs * per_epoch,
        batch_size=recipe.batch_size, every=per_epoch,
    )  # fmt: skip

    def epoch(state: Any, number: Any, data: ll.data.Splits) -> tuple[Any, dict[str, jax.Array]]:
        state, losses = train.advance(state, number * per_epoch, data)
        return state, {"loss": losses.mean()}

    def error(state: Any, number: Any, data: ll.data.Splits) -> dict[str, jax.Array]:
        pieces = jax.tree.map(lambda leaf: leaf.reshape(-1, 100, *leaf.shape[1:]), data.test)
        correct = jax.lax.map(lambda piece: ll.accuracy(model.apply(state.params, piece.x), piece.y), pieces)
        return {"error": 100 * (1 - correct.mean())}

    return Run(train.init, epoch, epochs, error)


def run_row(name: str, config: Config, data: ll.data.Splits, folder: Path, progress: tqdm) -> xr.Dataset:
    """Trains all seeds of a row, and returns their errors."""
    progress.set_description(name)
    entry, epochs = ENTRIES[name], config.epochs_of(name)
    see = jax.jit(entry.recipe.see)
    seen = ll.data.Splits(*(part._replace(x=see(jnp.asarray(part.x))) for part in data))
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1), config.seeds)
    stage = run_members(training(entry, epochs, len(data.train.x)), (keys,), seen, folder, progress)
    return xr.Dataset(
        {
            "loss": (("seed", "trained"), stage.metrics["loss"]),
            "error": (("seed", "epoch"), stage.metrics["error"]),
            "seconds": (("trained",), stage.seconds),
        },
        {"seed": np.arange(config.seeds), "epoch": np.arange(epochs + 1), "trained": 1 + np.arange(epochs)},
    ).expand_dims(row=[name])


def held(config: Config, data: ll.data.Splits) -> harness.Held:
    """Memory of a seed (weights and feedback of the largest network) and of the images."""
    inits = [ENTRIES[row].recipe.model.init for row in config.rows]
    params = max((jax.eval_shape(init, jax.random.key(0)) for init in inits), key=memory.bytes_of)
    return harness.Held([params] * 3, data)


EXPERIMENT = harness.Experiment(
    name="published",
    config=Config,
    report=report,
    kind="row",
    unit="epoch",
    parts=lambda config: {row: config.epochs_of(row) for row in config.rows},
    load=load,
    held=held,
    run_part=run_row,
    merge=lambda config, parts: xr.concat(parts, "row", join="outer"),
)


run = partial(machine.run_with_table, EXPERIMENT)
main = partial(machine.command_line, "published", Config, run)

if __name__ == "__main__":
    sys.exit(main())
