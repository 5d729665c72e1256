"""Trains and compares credit assignment rules on MNIST, with all seeds of a rule in one program.

Based on the microlearning tutorial of Neuromatch Academy (NeuroAI, week 2 day 3, 2024): which rules learn,
how noisy their gradients are, and how well they align with those of backprop.
"""

import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from tqdm import tqdm

import lax_learning as ll
from experiments import harness, memory
from experiments.checkpoints import save_params
from experiments.microlearning import report
from experiments.microlearning.config import Config
from experiments.microlearning.measures import RATES, evaluate, measure_noise, one_step_losses
from experiments.microlearning.networks import make_problem, seen_by
from experiments.microlearning.rules import LEARNING_RATES, make_rule
from experiments.running import Run, collect, run_members, side_by_side
from experiments.settings import POSITIVE
from experiments.sweeping import Program, Sweepable, check_at_most, program_of, while_finite

TEST_IMAGES = 1000  # default number of test images


def choose_test_images(key: jax.Array, data: ll.data.Splits, count: int | None) -> ll.data.Splits:
    """Replaces the test images by a random sample of `count` images, or all if there are fewer."""
    chosen = jax.random.permutation(key, data.test.x.shape[0])[: count or TEST_IMAGES]
    return data._replace(test=ll.data.Dataset(*(jnp.asarray(a)[chosen] for a in data.test)))


class Setting(NamedTuple):
    """One rule on one network."""

    name: str
    config: Config
    updates_per_epoch: int

    def optimizer(self, learning_rate: Any) -> optax.GradientTransformation:
        """Returns gradient descent with weight decay, momentum, and drops of the learning rate."""
        drops = {epoch * self.updates_per_epoch: 0.1 for epoch in self.config.drops}
        schedule = optax.piecewise_constant_schedule(learning_rate, drops) if drops else learning_rate
        descent = optax.sgd(schedule, self.config.momentum or None)
        decay = self.config.weight_decay
        return optax.chain(optax.add_decayed_weights(decay), descent) if decay else descent

    def rule(self, learning_rate: Any = 0.0, **hyper: Any) -> ll.Rule:
        """Returns the rule; Kolen-Pollack needs the learning rate to update its feedback like its weights."""
        return make_rule(self.name, self.config, self.optimizer(learning_rate), **hyper)

    def train(self, learning_rate: Any = 0.0, **hyper: Any) -> ll.Train:
        """Returns the training of the network by the rule."""
        problem, rule = make_problem(self.config), self.rule(learning_rate, **hyper)
        return ll.make_train(
            rule, self.optimizer(learning_rate), init=problem.model.init,
            num_updates=self.config.epochs * self.updates_per_epoch, batch_size=self.config.batch_size,
            evaluate=partial(evaluate, problem, rule), every=self.updates_per_epoch,
        )  # fmt: skip


def keys_of(config: Config) -> dict[str, jax.Array]:
    """Returns a key for each seed and purpose, the same for all rules."""
    _, *keys = jax.random.split(jax.random.key(config.seed), 5)
    purposes = zip(("train", "test", "measure", "search"), keys, strict=True)
    return {purpose: jax.random.split(key, config.seeds) for purpose, key in purposes}


def of_all_seeds(function: Callable[..., Any], *members: Any, data: ll.data.Splits) -> Any:
    """Runs a function on all seeds, one at a time on each CPU core, whose cache the weights of one fill."""
    in_axes = (*[0] * len(members), None)
    return ll.ensemble(function, in_axes=in_axes, batch_size=side_by_side())(*members, data)


def find_rate(setting: Setting, state: ll.TrainState, data: ll.data.Splits) -> float:
    """Returns the configured learning rate, or the matched one, whose first step is best on average."""
    config = setting.config
    asked = config.learning_rate or LEARNING_RATES[config.scale]
    if asked is not None:
        return asked
    losses = partial(one_step_losses, config, setting.rule())
    of_seeds = of_all_seeds(losses, keys_of(config)["search"], state.params, state.rule_state, data=data)
    means = np.nan_to_num(ll.gather(of_seeds).mean(axis=0), nan=np.inf)
    return RATES[int(means.argmin())] * (1 - config.momentum)


def epoch(train: ll.Train, state: ll.TrainState, number: Any, data: ll.data.Splits) -> tuple[Any, Any]:
    """Trains for one epoch."""
    state, losses = train.advance(state, number * train.every, data)
    return state, {"loss": losses}


def training(setting: Setting, rate: float) -> Run:
    """Training of one seed; a step is an epoch. A member is a key for test images and a training state."""
    train = setting.train(rate)

    def step(carry: Any, number: Any, data: ll.data.Splits) -> tuple[Any, dict[str, jax.Array]]:
        state, losses = epoch(train, carry[1], number, data)
        return (carry[0], state), losses

    def measure(carry: Any, number: Any, data: ll.data.Splits) -> dict[str, jax.Array]:
        of_seed = choose_test_images(carry[0], data, setting.config.test_images)
        return train.evaluate(carry[1], number * train.every, of_seed)

    return Run(lambda test_key, state, data: (test_key, state), step, setting.config.epochs, measure)


def run_rule(name: str, config: Config, data: ll.data.Splits, folder: Path, progress: tqdm) -> xr.Dataset:
    """Measures and trains one rule over all seeds."""
    progress.set_description(f"{name}: measuring")
    setting, keys = Setting(name, config, len(data.train.x) // config.batch_size), keys_of(config)
    state = of_all_seeds(setting.train().init, keys["train"], data=data)
    rate = find_rate(setting, state, data)

    def measure(key: jax.Array, test_key: jax.Array, state: ll.TrainState, data: ll.data.Splits) -> Any:
        data = choose_test_images(test_key, data, config.test_images)
        return measure_noise(name, config, setting.optimizer(0.0), key, state.params, state.rule_state, data)

    measures = ll.gather(of_all_seeds(measure, keys["measure"], keys["test"], state, data=data))
    progress.set_description(name)
    stage = run_members(training(setting, rate), (keys["test"], state), data, folder, progress)
    save_params(config.out, name, collect(stage.state[1].params, config.seeds))
    losses = stage.metrics.pop("loss").reshape(config.seeds, -1)
    evaluations = np.arange(config.epochs + 1) * setting.updates_per_epoch
    cosine = stage.metrics["cosine"]
    stage.metrics["angle_degrees"] = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    results = xr.Dataset(
        {
            "loss": (("seed", "step"), losses),
            **{k: (("seed", "evaluation", "layer")[: v.ndim], v) for k, v in stage.metrics.items()},
            **{k: (("seed", "layer"), v) for k, v in measures.items()},
            "seconds_per_update": (("epoch",), stage.seconds / setting.updates_per_epoch),
            "learning_rate": ((), rate),
        },
        {
            "seed": np.arange(config.seeds),
            "step": np.arange(evaluations[-1]),
            "evaluation": evaluations,
            "epoch": np.arange(1, config.epochs + 1),
            "layer": [*(f"layer {i + 1}" for i in range(cosine.shape[-1] - 1)), "total"],
        },
    )
    return results.expand_dims(rule=[name])


def load(config: Config) -> ll.data.Splits:
    """Loads the images, the same for all seeds, in the format of the network."""
    data_key, *_ = jax.random.split(jax.random.key(config.seed), 5)
    pixels = ll.data.mnist(data_key, config.data)
    num_images, num_test = (part.x.shape[0] for part in (pixels.train, pixels.test))
    config.expect("batch_size", f"at most {num_images} images", config.batch_size <= num_images)
    fits = config.test_images is None or config.test_images <= num_test
    config.expect("test_images", f"at most the {num_test} test images of --data {config.data}", fits)
    return ll.replicate(seen_by(make_problem(config), pixels))


def held(config: Config, data: ll.data.Splits) -> harness.Held:
    """Weights, losses and noise keys of every seed."""
    params = jax.eval_shape(make_problem(config).model.init, jax.random.key(0))
    losses = memory.floats(config.epochs, data.train.x.shape[0] // config.batch_size)
    return harness.Held((params, losses, memory.floats(max(config.num_samples, config.draws), 2)))


EXPERIMENT = harness.Experiment(
    name="microlearning",
    config=Config,
    report=report,
    kind="rule",
    unit="epoch",
    parts=lambda config: {name: config.epochs for name in config.rules},
    load=load,
    held=held,
    run_part=run_rule,
    merge=lambda config, parts: xr.concat(parts, "rule"),
)
run, main = EXPERIMENT.run, EXPERIMENT.main


images = cache(lambda source: ll.data.mnist(jax.random.key(0), source))


def swept(static: Mapping[str, Any]) -> Program:
    """Training by one rule; a chunk is an epoch."""
    options = {name: static[name] for name in ("network", "batch_size", "epochs")}
    config = Config(rules=(static["rule"],), hidden=(static["hidden"],), **options)
    problem = make_problem(config)
    data = seen_by(problem, images(static["data"]))
    check_at_most("batch_size", config.batch_size, len(data.train.x), "images")
    setting = Setting(static["rule"], config, len(data.train.x) // config.batch_size)

    def run(traced: dict[str, jax.Array]) -> Run:
        train, rule = setting.train(**traced), setting.rule(**traced)

        def accuracy(state: ll.TrainState, number: Any, data: ll.data.Splits) -> dict[str, jax.Array]:
            x, y = data.validation
            output = rule.model_at(problem.model, state.rule_state).apply(state.params, x)
            return {"accuracy": problem.accuracy(output, y)}

        return Run(train.init, partial(epoch, train), config.epochs, accuracy)

    def score(found: Any, measured: Any) -> jax.Array:
        return while_finite(measured["accuracy"], found["loss"])

    return program_of(run, score, config.epochs, data)


SWEEPABLE = Sweepable(
    "accuracy on the validation images",
    "maximize",
    {"learning_rate": 0.1, "sigma": 0.01, "decay": 0.02},
    {"rule": "backprop", "network": "dense", "hidden": 100, "batch_size": 100, "epochs": 5, "data": "sample"},
    swept,
    {"sigma": POSITIVE},
)

if __name__ == "__main__":
    sys.exit(main())
