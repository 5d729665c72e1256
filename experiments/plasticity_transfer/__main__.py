"""Meta-learns plasticity tables on half-spaces, transfers them to MNIST, and compares models over many seeds.

Based on the k-cap notebooks of the assemblies project (2020): can rules that were learned on a toy problem
learn to classify digits in one pass, without gradients?
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from tqdm import tqdm

import lax_learning as ll
from experiments import harness, memory
from experiments.checkpoints import save_params
from experiments.plasticity_transfer import report
from experiments.plasticity_transfer.config import Config
from experiments.plasticity_transfer.models import MODELS, Learned
from experiments.plasticity_transfer.stages import meta_learning, one_pass
from experiments.running import Run, collect, run_members
from experiments.sweeping import Program, Sweepable, program_of, while_finite


def keys_of(config: Config, stage: int, number: int) -> jax.Array:
    """Returns a key for each of `number` members of a stage, the same for every model."""
    return jax.random.split(jax.random.fold_in(jax.random.key(config.seed), stage), number)


def run_upstream(
    name: str, config: Config, folder: Path, progress: tqdm
) -> tuple[dict[str, np.ndarray], Learned, np.ndarray]:
    """Meta-learns the tables of all seeds, and repeats seeds that end below the least accuracy.

    Returns metrics, tables and seeds of all runs `[run, ...]`: the first of every seed, then repetitions.
    """
    model, seeds = MODELS[name], np.arange(config.seeds)
    if not model.by_tables:
        progress.update(config.chosen.rule_epochs)
        return {}, (), seeds
    run, attempts = meta_learning(model, config), []
    for number in range(config.attempts):
        if number > 0:
            progress.set_description(f"{name}: repeating {seeds.size} of {config.seeds} seeds")
            progress.total += config.chosen.rule_epochs
        keys = keys_of(config, 2 * number + 1, config.seeds)[seeds]
        stage = run_members(run, (keys,), (), folder / f"upstream_{number}", progress)
        tables = collect(stage.state[1].params.tables, len(seeds))
        attempts.append((stage.metrics, (tables,), seeds))
        reached = stage.metrics["test_balanced_accuracy"][:, -1] >= config.least_accuracy
        seeds = seeds[~reached]  # including those that diverged
        if seeds.size == 0:
            break
    return jax.tree.map(lambda *of_attempts: np.concatenate(of_attempts), *attempts)


def run_model(name: str, config: Config, data: Any, folder: Path, progress: tqdm) -> xr.Dataset:
    """Runs both stages of one model for all seeds and sub-seeds, without and with repetitions."""
    model, by_seed = MODELS[name], (config.seeds, config.subseeds)
    progress.set_description(f"{name}: upstream")
    upstream, tables, seeds = run_upstream(name, config, folder, progress)
    last = [np.flatnonzero(seeds == seed)[-1] for seed in range(config.seeds)]
    selected = np.stack([np.arange(config.seeds), last])  # runs, [selection, seed]
    used = np.unique(selected)
    progress.set_description(f"{name}: downstream")
    keys = keys_of(config, 0, config.seeds * config.subseeds).reshape(by_seed)[seeds[used]]
    learned = jax.tree.map(lambda leaf: np.repeat(leaf[used], config.subseeds, axis=0), tables)
    members = (keys.ravel(), learned)
    stage = run_members(one_pass(model, config), members, data, folder / "downstream", progress)
    learner = collect(stage.state[1], config.seeds * config.subseeds)
    first = {
        "tables": jax.tree.map(lambda leaf: leaf[: config.seeds], tables),
        "learner": jax.tree.map(lambda leaf: leaf.reshape(*by_seed, *leaf.shape[1:]), learner),
    }
    save_params(config.out, name, first)
    evaluations, axes = np.arange(1, config.evaluations + 1), ("selection", "seed")
    variables: dict[str, Any] = {
        "attempts": ("seed", np.bincount(seeds)),
        "samples": ("evaluation", model.piece_size(config) * evaluations),
    }
    for metric, values in upstream.items():
        variables[f"upstream_{metric}"] = ((*axes, "rule_epoch"), values[selected])
    for metric, values in stage.metrics.items():
        of_runs = values.reshape(len(used), config.subseeds, -1)[np.searchsorted(used, selected)]
        variables[f"downstream_{metric}"] = ((*axes, "subseed", "evaluation"), of_runs)
    coordinates = {
        "selection": ["all", "repeated"],
        "seed": np.arange(config.seeds),
        "subseed": np.arange(config.subseeds),
        "rule_epoch": np.arange(1, config.chosen.rule_epochs + 1),
        "evaluation": evaluations,
    }
    results = xr.Dataset(variables, coordinates).expand_dims(model=[name])
    parts = {"hidden": [t.hidden[0] for t in tables if t.hidden], "output": [t.output for t in tables]}
    for part, found in parts.items():
        for values in found:
            of_entries = (f"{name}_{part}_axis_{i}" for i in range(values.ndim - 1))
            results[f"{part}_table_{name}"] = ((*axes, *of_entries), values[selected])
    return results


def held(config: Config, data: Any) -> harness.Held:
    """Largest network and metrics of every seed and sub-seed, and the points of one seed."""
    upstream = [MODELS[name].upstream(config)[0] for name in config.models if MODELS[name].by_tables]
    states = [jax.eval_shape(network.init, jax.random.key(0)) for network in upstream]
    largest = max(states, key=memory.bytes_of, default=())
    measured = memory.floats(config.chosen.rule_epochs + config.evaluations, 3)
    points = memory.floats(sum(config.points), config.features)
    return harness.Held((largest, measured), points, config.subseeds)


def load(config: Config) -> tuple[ll.data.Dataset, ll.data.Dataset]:
    """Loads training and test images, the same for all members; refuses fewer than the settings need."""
    samples, by_tables = config.chosen.train_samples, all(MODELS[name].by_tables for name in config.models)
    most = samples if by_tables else samples // config.chosen.descent_batch
    config.expect("evaluations", f"at most {most}", config.evaluations <= most)
    splits = ll.data.mnist(jax.random.fold_in(jax.random.key(config.seed), 0), config.chosen.data)
    train = [np.concatenate(pair) for pair in zip(splits.train, splits.validation, strict=True)]
    if (got := len(train[0])) < samples:
        expected = f"at least {samples} training images with --preset {config.preset}"
        raise ValueError(f"--data: expected {expected}, got {got}")
    test = [a[: config.chosen.test_samples] for a in splits.test]
    return jax.tree.map(jnp.asarray, (ll.data.Dataset(*train), ll.data.Dataset(*test)))


EXPERIMENT = harness.Experiment(
    name="plasticity_transfer",
    config=Config,
    report=report,
    kind="model",
    unit="step",
    parts=lambda config: {name: config.chosen.rule_epochs + config.evaluations for name in config.models},
    load=load,
    held=held,
    run_part=run_model,
    merge=lambda config, parts: harness.joined(parts, "model", config.models).assign_attrs(
        points=config.points[0]
    ),
)
run, main = EXPERIMENT.run, EXPERIMENT.main


def swept(static: Mapping[str, Any]) -> Program:
    """Meta-learning of one model; a chunk is a pass through the points."""
    settings = {name: static[name] for name in ("width", "cap", "batch_size")}
    config = Config(rule_epochs=static["epochs"], points=(static["points"], 500), **settings)

    def run(traced: dict[str, jax.Array]) -> Run:
        return meta_learning(MODELS[static["model"]], config, traced["learning_rate"])

    def score(found: Any, measured: Any) -> jax.Array:
        return while_finite(found["test_balanced_accuracy"], found["loss"])

    return program_of(run, score, static["epochs"], ())


SWEEPABLE = Sweepable(
    "balanced accuracy on new points of the half-space",
    "maximize",
    {"learning_rate": 0.01},
    {
        "model": tuple(name for name, model in MODELS.items() if model.by_tables),
        "epochs": 4,
        "points": 2_500,
        "batch_size": 100,
        "width": 100,
        "cap": 50,
    },
    swept,
)

if __name__ == "__main__":
    sys.exit(main())
