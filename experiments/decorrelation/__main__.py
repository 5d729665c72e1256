"""Decorrelation of inputs: the notebook's runs, the gain with each rule, and variants of the update of R.

Based on the notebook on decorrelation and whitening of the decorrelated-backprop project (2024), which ends
with the question whether decorrelation helps on all of MNIST and with convolutions.
"""

import sys
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from tqdm import tqdm

import lax_learning as ll
from experiments import harness, memory, running
from experiments.checkpoints import save_params
from experiments.decorrelation import report, runs
from experiments.decorrelation.config import Config
from experiments.decorrelation.report import best_rate
from experiments.decorrelation.runs import Form, Numbers, Run, runs_of
from experiments.decorrelation.training import Carry, accuracy, start_of, train_of, training
from experiments.sweeping import Program, Sweepable, check_at_most, program_of, while_finite

CENTRE = (np.arange(7, 21)[:, None] * 28 + np.arange(7, 21)).ravel()  # 14 x 14 central pixels


def run_one(name: str, run: Run, config: Config, data: Any, folder: Path, progress: tqdm) -> xr.Dataset:
    """Runs all seeds and learning rates of a run in parallel; nothing is learned in step 0."""
    progress.set_description(name)
    form, num_steps = run.form, run.form.steps + 1
    keys = jnp.tile(jax.random.split(jax.random.key(config.seed), config.seeds), len(run.numbers))
    numbers = jax.tree.map(lambda *of_rates: jnp.repeat(jnp.array(of_rates), config.seeds), *run.numbers)
    train = training(form, len(data.train.x), config.batch_size)
    costs = [form.updates] * num_steps
    stage = running.run_members(train, (keys, numbers), data, folder, progress, costs)
    variables: dict[str, Any] = {}
    axes = ("rate", "seed", "step", "layer")
    for metric, values in stage.metrics.items():  # those of `measure` are also measured before step 0
        of_steps = values[:, -num_steps:].reshape(-1, config.seeds, num_steps, *values.shape[2:])
        variables[metric] = (axes[: of_steps.ndim], of_steps)
    variables["seconds"] = ("step", stage.seconds)
    variables["num_layers"] = ((), len(form.widths))
    variables["learning_rate"] = ("rate", np.array([of_rate.rate for of_rate in run.numbers]))
    variables["updates"] = ("step", form.updates * np.arange(float(num_steps)))
    if run.study == "notebook":
        for moment, matrix in correlations(run.numbers[0], stage.state.train, data).items():
            variables[moment] = (("pixel", "other_pixel"), matrix)
    results = xr.Dataset(variables)
    results = results.assign_coords({name: np.arange(results.sizes[name]) for name in axes})
    best = int(best_rate(results).rate)
    of_best = slice(best * config.seeds, (best + 1) * config.seeds)
    save_params(config.out, name, trained(run, stage.state.train, of_best))
    return results.expand_dims(run=[name]).assign_coords(study=("run", [run.study]))


def trained(run: Run, state: ll.TrainState, members: slice) -> Any:
    """Returns the params of some members, with R folded into the weights unless it has a bias."""
    layers = {} if run.form.dynamics is None else state.rule_state.layers
    params, layers = running.collect((state.params, layers), members.stop)
    params, layers = jax.tree.map(lambda leaf: leaf[members], (params, layers))
    if any(layer.b is not None for layer in layers.values()):  # weights cannot subtract a mean
        return {"params": params, "layers": layers}
    if not layers:
        return params
    fold = partial(ll.decorrelation.fold, run.form.network, x=jnp.zeros((1, 784)))
    return jax.tree.map(np.asarray, jax.vmap(fold)(params, layers))


def correlations(numbers: Numbers, state: ll.TrainState, data: ll.data.Splits) -> dict[str, np.ndarray]:
    """Computes second moments of the central pixels before and after R, for the first seed."""
    r = running.collect(state.rule_state.layers["0/w"].R, 1)[0]
    x = np.asarray(numbers.inputs(jnp.asarray(data.test.x)))
    both = {"moments_before": x, "moments_after": x @ r.T}
    return {name: (z.T @ z / len(z))[np.ix_(CENTRE, CENTRE)] for name, z in both.items()}


def images(config: Config) -> ll.data.Splits:
    """Loads the images, with pixels in 0..1 and one-hot labels, the same for all members."""
    splits = ll.data.mnist(jax.random.fold_in(jax.random.key(config.seed), 0), config.chosen.data)
    num_images = splits.train.x.shape[0]
    config.expect("batch_size", f"at most {num_images} images", config.batch_size <= num_images)
    most = min(part.x.shape[0] for part in splits[1:])
    named = f"at most {most}, the test or validation images of --data {config.chosen.data}"
    config.expect("test_images", named, config.test_images <= most)
    held_out = (ll.data.Dataset(*(a[: config.test_images] for a in part)) for part in splits[1:])
    return jax.tree.map(jnp.asarray, ll.data.Splits(splits.train, *held_out))


def held(config: Config, data: ll.data.Splits) -> harness.Held:
    """Largest run: networks, their R, and orders of images, for all seeds and learning rates."""
    every = sorted(runs_of(config).values(), key=lambda run: len(run.numbers))
    sizes = []
    for run in {run.form.network: run for run in every}.values():
        start = partial(start_of, run.form, data.train.x.shape[0], config.batch_size)
        sizes.append((jax.eval_shape(start, jax.random.key(0), run.numbers[0]), len(run.numbers)))
    each, members = max(sizes, key=lambda size: memory.bytes_of(size[0]) * size[1])
    return harness.Held(each, memory.floats(max(run.form.updates for run in every)), members)


EXPERIMENT = harness.Experiment(
    name="decorrelation",
    config=Config,
    report=report,
    kind="run",
    unit="update",
    parts=lambda config: {n: run.form.updates * (run.form.steps + 1) for n, run in runs_of(config).items()},
    load=images,
    held=held,
    run_part=lambda name, config, *others: run_one(name, runs_of(config)[name], config, *others),
    merge=lambda config, parts: harness.joined(parts, "run", list(runs_of(config))),
    compile_quickly=lambda config: config.preset == "sample",
)
run, main = EXPERIMENT.run, EXPERIMENT.main


CHUNKS = 5


_images = cache(lambda source: images(Config(preset="full", data=source)))


def swept(static: Mapping[str, Any]) -> Program:
    """Training by one rule on plain or decorrelated inputs; a chunk is a fifth of its updates."""
    data, batch_size = _images(static["data"]), static["batch_size"]
    num_images = data.train.x.shape[0]
    check_at_most("batch_size", batch_size, num_images, "images")
    updates = -(-static["updates"] // CHUNKS)
    network, inputs = runs.NETWORKS[static["network"]], runs.INPUTS[static["inputs"]]
    form = Form(network, static["rule"], inputs, runs.MOMENTUM, None, updates, CHUNKS)

    def run(traced: dict[str, jax.Array]) -> running.Run:
        numbers = Numbers(traced["learning_rate"], {"eta": traced["eta"]}, *runs.STANDARD)

        def init(key: jax.Array, data: ll.data.Splits) -> Carry:
            return start_of(form, num_images, batch_size, key, numbers)

        def step(carry: Carry, number: Any, data: ll.data.Splits) -> tuple[Carry, dict[str, jax.Array]]:
            train, rows = train_of(form, batch_size, carry, data)
            state, losses = train.advance(carry.train, number * updates, rows)
            return carry._replace(train=state), {"loss": losses}

        def measure(carry: Carry, number: Any, data: ll.data.Splits) -> dict[str, jax.Array]:
            return {"accuracy": accuracy(form, carry, data.validation)}

        return running.Run(init, step, CHUNKS, measure)

    def score(found: Any, measured: Any) -> jax.Array:
        return while_finite(measured["accuracy"], found["loss"])

    return program_of(run, score, CHUNKS, data)


SWEEPABLE = Sweepable(
    "accuracy on the validation images",
    "maximize",
    {"eta": 1e-3, "learning_rate": 0.03},
    {
        "rule": tuple(runs.RATES),
        "network": tuple(runs.NETWORKS),
        "inputs": ("decorrelated", *(name for name in runs.INPUTS if name != "decorrelated")),
        "updates": 50,
        "batch_size": 64,
        "data": "sample",
    },
    swept,
)

if __name__ == "__main__":
    sys.exit(main())
