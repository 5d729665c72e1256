"""Meta-learns plasticity tables on half-spaces, transfers them to MNIST, and compares models over many seeds.

Based on the k-cap notebooks of the assemblies project (2020): can rules that were learned on a toy problem
learn to classify digits in one pass, without gradients?
"""

import sys
from collections.abc import Mapping
from dataclasses import replace as with_changes
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr
from tqdm import tqdm

import lax_learning as ll
from experiments import harness, memory
from experiments.checkpoints import save_params
from experiments.plasticity_transfer import report
from experiments.plasticity_transfer.config import Config
from experiments.plasticity_transfer.models import MODELS, Learned
from experiments.plasticity_transfer.stages import images, meta_learning, one_pass, piece_size
from experiments.running import Run, collect, run_members
from experiments.sweeping import Program, Sweepable, program_of, while_finite
from lax_learning.plasticity import Tables


def keys_of(config: Config, stage: int, number: int) -> jax.Array:
    """Returns a key for each of `number` members of a stage, the same for every model."""
    return jax.random.split(jax.random.fold_in(jax.random.key(config.seed), stage), number)


def replace_members(whole: Any, members: np.ndarray, part: Any) -> Any:
    """Replaces some members of the pytree `whole` by those of `part`."""
    whole = jax.tree.map(np.array, whole)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
        a[members] = b
    return whole


Upstreamed = tuple[dict[str, np.ndarray], Learned]  # metrics of the upstream stage, and the learned tables


def run_upstream(name: str, config: Config, folder: Path, progress: tqdm) -> tuple[list[Upstreamed], Any]:
    """Meta-learns the tables of all seeds, and repeats seeds that end below the least accuracy.

    Returns the results without and with repetitions, and the number of attempts of every seed.
    """
    upstream = MODELS[name].upstream(config)
    attempts = np.ones(config.seeds, int)
    if upstream is None:
        progress.update(config.chosen.rule_epochs)
        return [({}, ())] * 2, attempts
    run = meta_learning(upstream, config)

    def attempt(number: int, seeds: np.ndarray) -> Upstreamed:
        keys = keys_of(config, 2 * number + 1, config.seeds)[seeds]
        stage = run_members(run, (keys,), (), folder / f"upstream_{number}", progress)
        return stage.metrics, (collect(stage.state.train.params.tables, len(keys)),)

    first = selected = attempt(0, np.arange(config.seeds))
    for number in range(1, config.attempts):
        reached = selected[0]["test_balanced_accuracy"][:, -1] >= config.least_accuracy
        failed = np.flatnonzero(~reached)  # including those that diverged
        if failed.size == 0:
            break
        progress.set_description(f"{name}: repeating {failed.size} of {config.seeds} seeds")
        progress.total += config.chosen.rule_epochs
        selected = replace_members(selected, failed, attempt(number, failed))
        attempts[failed] += 1
    return [first, selected], attempts


def run_downstream(
    name: str, config: Config, learned: list[Learned], repeated: np.ndarray, *others: Any
) -> list[dict[str, np.ndarray]]:
    """Runs one pass over the images for all seeds and sub-seeds, without and with repetitions."""
    seeds = np.concatenate([np.arange(config.seeds), repeated])
    tables = jax.tree.map(lambda a, b: np.concatenate([a, b[repeated]]), *learned)
    keys = keys_of(config, 0, config.seeds * config.subseeds).reshape(config.seeds, config.subseeds)[seeds]
    members = (keys.ravel(), jax.tree.map(lambda a: np.repeat(a, config.subseeds, axis=0), tables))
    run = one_pass(MODELS[name].downstream(config), config)
    stage = run_members(run, members, *others)
    trained = collect(stage.state[1], config.seeds * config.subseeds)
    shape = config.seeds, config.subseeds
    trained = jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), trained)
    save_params(config.out, name, {"tables": learned[0], "learner": trained})
    shaped = {k: v.reshape(len(seeds), config.subseeds, -1) for k, v in stage.metrics.items()}
    first = {k: v[: config.seeds] for k, v in shaped.items()}
    return [first, replace_members(first, repeated, {k: v[config.seeds :] for k, v in shaped.items()})]


def run_model(name: str, config: Config, data: Any, folder: Path, progress: tqdm) -> xr.Dataset:
    """Runs both stages of one model; the results have named axes."""
    progress.set_description(f"{name}: upstream")
    upstream, attempts = run_upstream(name, config, folder, progress)
    progress.set_description(f"{name}: downstream")
    learned, repeated = [of_selection for _, of_selection in upstream], np.flatnonzero(attempts > 1)
    downstream = run_downstream(name, config, learned, repeated, data, folder / "downstream", progress)
    evaluations = np.arange(1, config.evaluations + 1)
    samples = piece_size(MODELS[name].downstream(config), config) * evaluations
    variables: dict[str, Any] = {"attempts": ("seed", attempts), "samples": ("evaluation", samples)}
    for stage, both, axes in (
        ("upstream", [metrics for metrics, _ in upstream], ("rule_epoch",)),
        ("downstream", downstream, ("subseed", "evaluation")),
    ):
        for metric in both[0]:
            values = np.stack([metrics[metric] for metrics in both])
            variables[f"{stage}_{metric}"] = (("selection", "seed", *axes), values)
    coordinates = {
        "selection": ["all", "repeated"],
        "seed": np.arange(config.seeds),
        "subseed": np.arange(config.subseeds),
        "rule_epoch": np.arange(1, config.chosen.rule_epochs + 1),
        "evaluation": evaluations,
    }
    results = xr.Dataset(variables, coordinates).expand_dims(model=[name])
    tables = [Tables(*of_selection) for pair in learned for of_selection in pair]
    of_parts = {"hidden": [t.hidden[0] for t in tables if t.hidden], "output": [t.output for t in tables]}
    for part, pair in of_parts.items() if tables else ():
        values = np.stack(pair)
        axes = tuple(f"{name}_{part}_axis_{i}" for i in range(values.ndim - 2))
        results[f"{part}_table_{name}"] = (("selection", "seed", *axes), values)
    return results


def held(config: Config, data: Any) -> harness.Held:
    """Largest network and metrics of every seed and sub-seed, and the points of one seed."""
    upstream = filter(None, (MODELS[name].upstream(config) for name in config.models))
    states = [jax.eval_shape(one.network.init, jax.random.key(0)) for one in upstream]
    largest = max(states, key=memory.bytes_of, default=())
    measured = memory.floats(config.chosen.rule_epochs + config.evaluations, 3)
    points = memory.floats(sum(config.points), config.features)
    return harness.Held((largest, measured), points, config.subseeds)


def load(config: Config) -> tuple[ll.data.Dataset, ll.data.Dataset]:
    """Loads the images; raises ValueError if there are fewer than the settings need."""
    samples = config.chosen.train_samples
    narrow = with_changes(config, width=config.cap)  # `begin` checks later whether the width fits into memory
    most = samples // max(MODELS[name].downstream(narrow).multiple for name in config.models)
    config.expect("evaluations", f"at most {most}", config.evaluations <= most)
    data = images(config)
    if (got := len(data[0].x)) < samples:
        expected = f"at least {samples} training images with --preset {config.preset}"
        raise ValueError(f"--data: expected {expected}, got {got}")
    return data


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
    upstream = MODELS[static["model"]].upstream(config)
    assert upstream is not None  # the models of SWEEPABLE learn upstream

    def run(traced: dict[str, jax.Array]) -> Run:
        return meta_learning(upstream, config, traced["learning_rate"])

    def score(found: Any, measured: Any) -> jax.Array:
        return while_finite(found["test_balanced_accuracy"], found["loss"])

    return program_of(run, score, static["epochs"], ())


SWEEPABLE = Sweepable(
    "balanced accuracy on new points of the half-space",
    "maximize",
    {"learning_rate": 0.01},
    {
        "model": tuple(name for name, model in MODELS.items() if model.upstream(Config()) is not None),
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
