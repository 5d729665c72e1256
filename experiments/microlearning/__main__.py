"""Trains and compares all credit assignment rules on MNIST, over many seeds in one program each.

After the microlearning tutorial of Neuromatch Academy (NeuroAI, week 2 day 3, 2024): which rules learn, how
noisy their gradients are, and how far they point from backprop's.
"""

import shutil
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
import xarray as xr
from tqdm import tqdm

import lax_learning as ll
from experiments import harness
from experiments.microlearning import report
from experiments.microlearning.config import Config
from experiments.microlearning.measures import RATES, evaluator, measurement, one_step_losses
from experiments.microlearning.rules import RULES, SCALES, make_network

NAME = "microlearning"


def load(config: Config) -> ll.data.Splits:
    """The images, the same for all seeds."""
    data_key, *_ = jax.random.split(jax.random.key(config.seed), 5)
    return jax.tree.map(jnp.asarray, ll.data.mnist(data_key, config.data))


def choose_test_images(key: jax.Array, data: ll.data.Splits, count: int) -> ll.data.Splits:
    """Replaces the test images by `count` of them, or all if there are fewer: each seed's own."""
    chosen = jax.random.permutation(key, data.test.x.shape[0])[:count]
    return data._replace(test=ll.data.Dataset(*(jnp.asarray(a)[chosen] for a in data.test)))


def run_rule(name: str, config: Config, data: ll.data.Splits, progress: tqdm) -> xr.Dataset:
    """Trains one rule over all seeds and measures it, from its checkpoint if there is one."""
    network, loss, scale = make_network(config), ll.squared_error, SCALES[config.scale]
    rule = RULES[name](network, loss, config, scale.sums)
    in_gradient_units = RULES[name](network, loss, config, "gradient")
    _, init_key, test_key, measure_key, search_key = jax.random.split(jax.random.key(config.seed), 5)
    keys, test_keys, measure_keys, search_keys = (
        jax.random.split(key, config.seeds) for key in (init_key, test_key, measure_key, search_key)
    )
    per_epoch = data.train.x.shape[0] // config.batch_size

    def make_train(learning_rate: float) -> ll.Train:
        return ll.make_train(
            rule,
            optax.sgd(learning_rate),
            num_updates=config.epochs * per_epoch,
            batch_size=config.batch_size,
            evaluate=evaluator(network, loss, rule),
            every=per_epoch,
        )

    progress.set_description(f"{name}: measuring")
    state = ll.ensemble(make_train(0.0).init)(keys, data)
    rate = config.learning_rate or scale.learning_rate
    if rate is None:
        search = ll.ensemble(one_step_losses(network, loss, rule, config), in_axes=(0, 0, None))
        losses = np.asarray(search(search_keys, state.params, data)).mean(axis=0)
        rate = RATES[int(np.nanargmin(losses))]
    measure = ll.ensemble(measurement(network, loss, rule, in_gradient_units, config), in_axes=(0, 0, None))
    measures = jax.tree.map(np.asarray, measure(measure_keys, state.params, data))
    train = make_train(rate)
    advance, evaluate = ll.ensemble(train.advance), ll.ensemble(train.evaluate)
    first = evaluate(state, 0, data)

    def empty(like: np.ndarray | jax.Array, size: int) -> np.ndarray:
        return np.full((config.seeds, size, *like.shape[1:]), np.nan, np.float32)

    held: dict[str, Any] = {
        "state": state,
        "loss": empty(keys, train.num_updates),
        "seconds_per_update": np.full(config.epochs, np.nan),
        "evaluations": {k: empty(v, config.epochs + 1) for k, v in first.items()},
    }
    for k, v in first.items():
        held["evaluations"][k][:, 0] = v
    checkpoint = harness.Checkpoint(config.out / "checkpoints" / name)
    start, held = checkpoint.restore(held) or (0, held)
    advance.compile(held["state"], 0, data)
    progress.set_description(name)
    progress.update(start)
    for epoch in range(start, config.epochs):
        step, began = epoch * per_epoch, time.perf_counter()
        held["state"], losses = jax.block_until_ready(advance(held["state"], step, data))
        held["seconds_per_update"][epoch] = (time.perf_counter() - began) / (per_epoch * config.seeds)
        held["loss"][:, step : step + per_epoch] = losses
        for k, v in evaluate(test_keys, held["state"], step + per_epoch, data).items():
            held["evaluations"][k][:, epoch + 1] = v
        checkpoint.save(epoch + 1, held)
        progress.update()
    return as_dataset(config, per_epoch, rate, held, jax.tree.map(np.asarray, measures)).expand_dims(
        rule=[name]
    )


def as_dataset(
    config: Config, per_epoch: int, rate: float, held: dict[str, Any], measures: dict[str, Any]
) -> xr.Dataset:
    """The results of one rule with named axes."""
    layers = [*(f"layer {i + 1}" for i in range(len(config.hidden) + 1)), "total"]
    evaluations = {k: (("seed", "evaluation", "layer")[: v.ndim], v) for k, v in held["evaluations"].items()}
    cosine = held["evaluations"]["cosine"]
    return xr.Dataset(
        {
            "loss": (("seed", "step"), held["loss"]),
            **evaluations,
            "angle_degrees": (evaluations["cosine"][0], np.degrees(np.arccos(np.clip(cosine, -1, 1)))),
            **{k: (("seed", "layer"), v) for k, v in measures.items()},
            "seconds_per_update": (("epoch",), held["seconds_per_update"]),
            "learning_rate": ((), rate),
        },
        {
            "seed": np.arange(config.seeds),
            "step": np.arange(config.epochs * per_epoch),
            "evaluation": np.arange(config.epochs + 1) * per_epoch,
            "epoch": np.arange(1, config.epochs + 1),
            "layer": layers,
        },
    )


def run(config: Config) -> xr.Dataset:
    """Runs the whole comparison into `config.out` and returns its results."""
    data = load(config)
    num_images = data.train.x.shape[0]
    if config.batch_size > num_images:
        raise ValueError(f"--batch-size: expected at most {num_images} images, got {config.batch_size}")
    harness.open_folder(config.out, config.deciding(), resume=config.resume)
    finished, unfinished = config.out / "rules", config.out / "checkpoints"
    finished.mkdir(exist_ok=True)
    harness.keep_compiled_programs(unfinished / "compiled")
    parts: list[xr.Dataset] = []
    with tqdm(total=len(config.rules) * config.epochs, unit="epoch", smoothing=0.05) as progress:
        for name in config.rules:
            path = finished / f"{name}.nc"
            if path.exists():
                progress.update(config.epochs)
            else:
                harness.write_dataset(path, run_rule(name, config, data, progress))
                shutil.rmtree(unfinished / name, ignore_errors=True)
            parts.append(harness.read_dataset(path))
    results = xr.concat(parts, "rule")
    harness.write_dataset(config.out / "results.nc", results)
    rows = report.rows(results)
    harness.write_summary(config.out, NAME, config.deciding(), rows)
    report.figures(results, config.out)
    print(report.table(rows))
    shutil.rmtree(unfinished, ignore_errors=True)
    print(f"\nresults.nc, summary.json and figures: {config.out}")
    return results


def main() -> int:
    """The command line."""
    try:
        run(tyro.cli(Config, prog=f"python -m experiments.{NAME}"))
    except (ValueError, OSError) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{NAME}: stopped; the same command with --resume goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
