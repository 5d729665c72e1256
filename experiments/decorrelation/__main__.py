"""Decorrelation of inputs: the notebook's runs, what it gains under each rule, and its choices.

After the notebook on decorrelation and whitening of the decorrelated-backprop project (2024), which ends on
the question whether there is a gain on all of MNIST and with convolutions.
"""

import sys
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from tqdm import tqdm

import lax_learning as ll
from experiments import harness, memory, running
from experiments.checkpoints import save_params
from experiments.decorrelation import report
from experiments.decorrelation.config import Config
from experiments.decorrelation.reading import best_rate
from experiments.decorrelation.runs import Run, runs_of, targets

CENTRE = (np.arange(7, 21)[:, None] * 28 + np.arange(7, 21)).ravel()  # 14 x 14 pixels


class Carry(NamedTuple):
    """State of a run between two measurements; the rule's holds R, unless inputs are plain."""

    key: jax.Array
    rate: jax.Array
    images: jax.Array
    params: Any
    rule_state: Any
    optimizer_state: Any
    order: ll.data.BatchState


class Images(NamedTuple):
    """Data of all members: pixels in 0..1 and one-hot labels."""

    train: ll.data.Dataset
    validation: ll.data.Dataset
    test: ll.data.Dataset


def inputs(run: Run, pixels: jax.Array) -> jax.Array:
    """Pixels as the network reads them."""
    mean, width = run.scale
    return (pixels - mean) / width


def widths(run: Run) -> list[int]:
    """Outputs of every layer, the last of which may be more than labels."""
    return [layer["w"].shape[-1] for layer in jax.eval_shape(run.network.init, jax.random.key(0))]


def network_of(run: Run, carry: Carry) -> ll.Model:
    """The network as the rule sees it: without R, if the run is on plain inputs."""
    return (
        run.network if run.dynamics is None else ll.decorrelation.wrap(run.network, carry.rule_state.layers)
    )


def layers_of(run: Run, carry: Carry, x: jax.Array) -> dict[str, ll.decorrelation.State]:
    """R of every layer in order of depth: the identity, if the run is on plain inputs."""
    state = carry.rule_state
    if run.dynamics is None:
        state = (
            run._replace(dynamics=ll.decorrelation.dynamics(0.0)).rule(0.0).init(carry.key, carry.params, x)
        )
    return {name: state.layers[name] for name in in_depth(state.layers)}


def in_depth(layers: dict[str, Any]) -> list[str]:
    """Names of layers, such as `0/w`, in order of depth."""
    return sorted(layers, key=lambda name: int(name.split("/")[0]))


def start_of(run: Run, num_images: int, batch_size: int, key: jax.Array, rate: jax.Array) -> Carry:
    """The start of a run: weights and the draw of the images of a seed."""
    draw_key, params_key, rule_key, order_key, run_key = jax.random.split(key, 5)
    drawn = jax.random.permutation(draw_key, num_images)[: run.images or num_images]
    params = run.network.init(params_key)
    state = run.rule(rate).init(rule_key, params, jnp.zeros((1, 784)))
    order = ll.data.batches(drawn.shape[0], batch_size).init(order_key)
    return Carry(run_key, rate, drawn, params, state, run.optimizer(rate).init(params), order)


def update(
    run: Run, batch_size: int, data: Images, carry: Carry, number: Any
) -> tuple[Carry, tuple[jax.Array, jax.Array]]:
    """One update, and the losses before it; the decorrelation loss of a layer without R is NaN."""
    order, chosen = ll.data.batches(carry.images.shape[0], batch_size).next(carry.order, number)
    rows, outputs = carry.images[chosen], widths(run)
    x, y = inputs(run, data.train.x[rows]), targets(data.train.y[rows], outputs[-1])
    key = jax.random.fold_in(carry.key, number)
    loss, grads, state = run.rule(carry.rate).value_and_grad(key, carry.params, carry.rule_state, x, y)
    nowhere = jnp.full(len(outputs), jnp.nan)
    losses = nowhere if run.dynamics is None else jnp.stack([state.losses[n] for n in in_depth(state.losses)])
    updates, optimizer_state = run.optimizer(carry.rate).update(grads, carry.optimizer_state, carry.params)
    params = optax.apply_updates(carry.params, updates)
    carry = carry._replace(params=params, rule_state=state, optimizer_state=optimizer_state, order=order)
    return carry, (loss, losses)


def measure(run: Run, carry: Carry, number: Any, data: Images) -> dict[str, jax.Array]:
    """Accuracy, the largest entry of R, and at the end the correlations left in the inputs of the layers."""
    network, x = network_of(run, carry), inputs(run, jnp.asarray(data.test.x))
    layers = layers_of(run, carry, x)

    def accuracy(images: ll.data.Dataset) -> jax.Array:
        output = network.apply(carry.params, inputs(run, jnp.asarray(images.x)))
        return ll.accuracy(output, targets(jnp.asarray(images.y), output.shape[1]))

    def correlation() -> jax.Array:
        read = ll.decorrelation.inputs(run.network, carry.params, layers, x)
        white = [ll.decorrelation.apply(layer, read[name]) for name, layer in layers.items()]
        return jnp.stack([ll.decorrelation.loss(z, kappa=0.0) for z in white])

    nowhere = jnp.full(len(layers), jnp.nan)
    return {
        "correlation": jax.lax.cond(number == run.steps + 1, correlation, lambda: nowhere),
        "validation_accuracy": accuracy(data.validation),
        "test_accuracy": accuracy(data.test),
        "largest_r": jnp.stack([jnp.max(jnp.abs(layer.R)) for layer in layers.values()]).max(),
    }


def training(run: Run, num_images: int, batch_size: int) -> running.Run:
    """Training of a seed at a learning rate. The first step looks at batches without learning from them."""

    def init(key: jax.Array, rate: jax.Array, data: Images) -> Carry:
        del data
        return start_of(run, num_images, batch_size, key, rate)

    def step(carry: Carry, number: Any, data: Images) -> tuple[Carry, dict[str, jax.Array]]:
        numbers = number * run.updates + jnp.arange(run.updates)

        def learn(carry: Carry, n: Any) -> tuple[Carry, Any]:
            return update(run, batch_size, data, carry, n)

        def look(carry: Carry, n: Any) -> tuple[Carry, Any]:
            after, losses = learn(carry, n)
            return carry._replace(order=after.order), losses

        carry, (losses, decorrelation_losses) = jax.lax.cond(
            number > 0, *(partial(jax.lax.scan, f, xs=numbers) for f in (learn, look)), carry
        )
        means = {
            "loss": jnp.mean(losses),
            # NaN at updates that leave R alone, and after the loss has become NaN
            "decorrelation_loss": jnp.where(
                jnp.all(jnp.isfinite(losses)), jnp.nanmean(decorrelation_losses, axis=0), jnp.nan
            ),
        }
        return carry, means

    return running.Run(init, step, run.steps + 1, partial(measure, run))


def run_one(name: str, run: Run, config: Config, data: Images, folder: Path, progress: tqdm) -> xr.Dataset:
    """One run, all seeds and learning rates side by side; step 0 is without learning."""
    progress.set_description(name)
    num_images, num_layers = data.train.x.shape[0], len(widths(run))
    shape = (len(run.rates), config.seeds)
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)[np.tile(np.arange(shape[1]), shape[0])]
    members = (keys, jnp.repeat(jnp.asarray(run.rates), config.seeds))
    stage = running.run_members(
        training(run, num_images, config.batch_size), members, data, folder, progress,
        [run.updates] * (run.steps + 1),
    )  # fmt: skip
    variables: dict[str, Any] = {}
    for metric, values in stage.metrics.items():
        of_steps = values[:, -run.steps - 1 :].reshape(*shape, run.steps + 1, *values.shape[2:])
        variables[metric] = (("rate", "seed", "step", "layer")[: of_steps.ndim], of_steps)
    variables["seconds"] = (("step",), stage.seconds)
    variables["num_layers"] = ((), num_layers)
    variables["learning_rate"] = (("rate",), np.asarray(run.rates))
    variables["updates"] = (("step",), run.updates * np.arange(run.steps + 1.0))
    if run.study == "notebook":
        for moment, matrix in correlations(run, stage.state, data).items():
            variables[moment] = (("pixel", "other_pixel"), matrix)
    coordinates = {
        "rate": np.arange(shape[0]),
        "seed": np.arange(shape[1]),
        "step": np.arange(run.steps + 1),
        "layer": np.arange(num_layers),
    }
    results = xr.Dataset(variables, coordinates)
    best = int(best_rate(results).rate)
    of_best = slice(best * config.seeds, (best + 1) * config.seeds)
    save_params(config.out, name, trained(run, stage.state, of_best))
    return results.expand_dims(run=[name]).assign_coords(study=("run", [run.study]))


def trained(run: Run, state: Carry, members: slice) -> Any:
    """Returns the params of some members, as those of the network without decorrelation."""
    layers = {} if run.dynamics is None else state.rule_state.layers
    params, layers = running.collect((state.params, layers), members.stop)
    params, layers = jax.tree.map(lambda leaf: leaf[members], (params, layers))
    if any(layer.b is not None for layer in layers.values()):  # weights cannot remove a mean
        return {"params": params, "layers": layers}
    if not layers:
        return params
    x = jnp.zeros((1, 784))
    folded = [
        ll.decorrelation.fold(
            run.network, jax.tree.map(itemgetter(i), params), jax.tree.map(itemgetter(i), layers), x
        )
        for i in range(members.stop - members.start)
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *folded)


def correlations(run: Run, state: Carry, data: Images) -> dict[str, np.ndarray]:
    """Second moments of the pixels in the centre before and after R, of the first seed."""
    r = running.collect(state.rule_state.layers["0/w"].R, 1)[0]
    x = np.asarray(inputs(run, jnp.asarray(data.test.x)))
    z = x @ r.T
    return {
        "moments_before": (x.T @ x / len(x))[np.ix_(CENTRE, CENTRE)],
        "moments_after": (z.T @ z / len(z))[np.ix_(CENTRE, CENTRE)],
    }


def images(config: Config) -> Images:
    """Loads the images of all members."""
    splits = ll.data.mnist(jax.random.fold_in(jax.random.key(config.seed), 0), config.source or "")
    num_images = splits.train.x.shape[0]
    config.expect("batch_size", f"at most {num_images} images", config.batch_size <= num_images)
    held_out = [tuple(a[: config.test_images] for a in part) for part in splits[1:]]
    held = Images(splits.train, *(ll.data.Dataset(*part) for part in held_out))
    return jax.tree.map(jnp.asarray, held)


def held(config: Config, data: Images) -> harness.Held:
    """The largest run: networks, their R and the order of the images of every seed, at all learning rates."""
    runs, sizes = runs_of(config), []
    of_network = {id(run.network): run for run in sorted(runs.values(), key=lambda run: len(run.rates))}
    for run in of_network.values():
        start = partial(start_of, run, data.train.x.shape[0], config.batch_size)
        sizes.append((jax.eval_shape(start, jax.random.key(0), 0.1), len(run.rates)))
    each, members = max(sizes, key=lambda size: memory.bytes_of(size[0]) * size[1])
    return harness.Held(each, memory.floats(max(run.updates for run in runs.values())), members)


EXPERIMENT = harness.Experiment(
    name="decorrelation",
    config=Config,
    report=report,
    kind="run",
    unit="update",
    parts=lambda config: {name: run.updates * (run.steps + 1) for name, run in runs_of(config).items()},
    load=images,
    held=held,
    run_part=lambda name, config, data, folder, progress: run_one(
        name, runs_of(config)[name], config, data, folder, progress
    ),
    merge=lambda config, parts: harness.joined(parts, "run", list(runs_of(config))),
    compile_quickly=lambda config: config.preset == "sample",
)
run, main = EXPERIMENT.run, EXPERIMENT.main

if __name__ == "__main__":
    sys.exit(main())
