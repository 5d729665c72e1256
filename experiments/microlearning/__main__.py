"""Trains and compares credit assignment rules on MNIST, with all seeds of a rule in one program.

Based on the microlearning tutorial of Neuromatch Academy (NeuroAI, week 2 day 3, 2024): which rules learn,
how noisy their gradients are, and how well they align with those of backprop.
"""

import sys
from collections.abc import Callable, Mapping
from functools import cache
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
from experiments.microlearning.measures import RATES, evaluator, measurement, one_step_losses
from experiments.microlearning.networks import Problem, make_problem, seen_by
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
    """Setting of a run: one rule on one network, with the keys of all seeds."""

    name: str
    config: Config
    problem: Problem
    updates_per_epoch: int
    keys: dict[str, jax.Array]

    def optimizer(self, learning_rate: float) -> optax.GradientTransformation:
        """Returns gradient descent with weight decay, momentum, and drops of the learning rate."""
        drops = {epoch * self.updates_per_epoch: 0.1 for epoch in self.config.drops}
        schedule = optax.piecewise_constant_schedule(learning_rate, drops)
        descent = optax.sgd(schedule, self.config.momentum or None)
        return optax.chain(optax.add_decayed_weights(self.config.weight_decay), descent)

    def rule(self, learning_rate: float = 0.0) -> ll.Rule:
        """Returns the rule; Kolen-Pollack needs the learning rate to update its feedback like its weights."""
        return make_rule(self.name, self.config, self.optimizer(learning_rate))

    def make_train(self, learning_rate: float = 0.0) -> ll.Train:
        """Returns the training of the network by the rule."""
        rule = self.rule(learning_rate)
        return ll.make_train(
            rule, self.optimizer(learning_rate), init=self.problem.model.init,
            num_updates=self.config.epochs * self.updates_per_epoch, batch_size=self.config.batch_size,
            evaluate=evaluator(self.problem, rule), every=self.updates_per_epoch,
        )  # fmt: skip


def make_setting(name: str, config: Config, data: ll.data.Splits) -> Setting:
    """Returns the setting of a rule; all rules have the same keys."""
    _, *keys = jax.random.split(jax.random.key(config.seed), 5)
    purposes = zip(("train", "test", "measure", "search"), keys, strict=True)
    of_seeds = {purpose: jax.random.split(key, config.seeds) for purpose, key in purposes}
    return Setting(name, config, make_problem(config), len(data.train.x) // config.batch_size, of_seeds)


def find_rate(setting: Setting, state: ll.TrainState, data: ll.data.Splits) -> float:
    """Returns the configured learning rate, or the matched one, whose first step is best on average."""
    asked = setting.config.learning_rate or LEARNING_RATES[setting.config.scale]
    if asked is not None:
        return asked
    losses = one_step_losses(setting.problem, setting.rule(), setting.config)
    keys = setting.keys["search"]
    of_seeds = of_all_seeds(losses, (0, 0, 0, None))(keys, state.params, state.rule_state, data)
    means = np.nan_to_num(ll.gather(of_seeds).mean(axis=0), nan=np.inf)
    return RATES[int(means.argmin())] * (1 - setting.config.momentum)


def measure_start(setting: Setting, state: ll.TrainState, data: ll.data.Splits) -> dict[str, np.ndarray]:
    """Measures SNR, bias and variance at initialisation."""
    config, keys = setting.config, setting.keys
    measure = measurement(setting.name, config, setting.optimizer(0.0))

    def of_seed(key: jax.Array, test_key: jax.Array, state: ll.TrainState, data: ll.data.Splits) -> Any:
        data = choose_test_images(test_key, data, config.test_images)
        return measure(key, state.params, state.rule_state, data)

    return ll.gather(of_all_seeds(of_seed, (0, 0, 0, None))(keys["measure"], keys["test"], state, data))


def training(setting: Setting, rate: float) -> Run:
    """Training of one seed; a step is an epoch. A member is a key for test images and a training state."""
    per_epoch, train = setting.updates_per_epoch, setting.make_train(rate)

    def epoch(carry: Any, number: Any, data: ll.data.Splits) -> tuple[Any, dict[str, jax.Array]]:
        test_key, state = carry
        state, losses = train.advance(state, number * per_epoch, data)
        return (test_key, state), {"loss": losses}

    def evaluate(carry: Any, number: Any, data: ll.data.Splits) -> dict[str, jax.Array]:
        test_key, state = carry
        of_seed = choose_test_images(test_key, data, setting.config.test_images)
        return train.evaluate(state, number * per_epoch, of_seed)

    return Run(lambda test_key, state, data: (test_key, state), epoch, setting.config.epochs, evaluate)


def of_all_seeds(function: Callable[..., Any], in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """Ensemble of all seeds, one at a time on each CPU core, because the weights of one fill its cache."""
    return ll.ensemble(function, in_axes=in_axes, batch_size=side_by_side())


def run_rule(name: str, config: Config, data: ll.data.Splits, folder: Path, progress: tqdm) -> xr.Dataset:
    """Measures and trains one rule over all seeds."""
    progress.set_description(f"{name}: measuring")
    setting = make_setting(name, config, data)
    per_epoch = setting.updates_per_epoch
    state = of_all_seeds(setting.make_train().init, (0, None))(setting.keys["train"], data)
    rate = find_rate(setting, state, data)
    measures = measure_start(setting, state, data)
    progress.set_description(name)
    stage = run_members(training(setting, rate), (setting.keys["test"], state), data, folder, progress)
    save_params(config.out, name, collect(stage.state[1].params, config.seeds))
    loss, cosine = stage.metrics["loss"].reshape(config.seeds, -1), stage.metrics["cosine"]
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    evaluated = {name: v for name, v in stage.metrics.items() if name != "loss"} | {"angle_degrees": angle}
    results = xr.Dataset(
        {
            "loss": (("seed", "step"), loss),
            **{k: (("seed", "evaluation", "layer")[: v.ndim], v) for k, v in evaluated.items()},
            **{k: (("seed", "layer"), v) for k, v in measures.items()},
            "seconds_per_update": (("epoch",), stage.seconds / per_epoch),
            "learning_rate": ((), rate),
        },
        {
            "seed": np.arange(config.seeds),
            "step": np.arange(config.epochs * per_epoch),
            "evaluation": np.arange(config.epochs + 1) * per_epoch,
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
    name: str = static["rule"]
    config = Config(rules=(name,), network=static["network"], hidden=(static["hidden"],))
    problem = make_problem(config)
    data = seen_by(problem, images(static["data"]))
    num_images = data.train.x.shape[0]
    check_at_most("batch_size", static["batch_size"], num_images, "images")
    per_epoch = num_images // static["batch_size"]

    def run(traced: dict[str, jax.Array]) -> Run:
        optimizer = optax.sgd(traced["learning_rate"])
        rule = make_rule(name, config, optimizer, sigma=traced["sigma"], decay=traced["decay"])
        sizes = {"batch_size": static["batch_size"], "num_updates": static["epochs"] * per_epoch}
        train = ll.make_train(rule, optimizer, init=problem.model.init, every=per_epoch, **sizes)

        def epoch(state: ll.TrainState, number: Any, data: ll.data.Splits) -> Any:
            state, losses = train.advance(state, number * per_epoch, data)
            return state, {"loss": losses}

        def accuracy(state: ll.TrainState, number: Any, data: ll.data.Splits) -> dict[str, jax.Array]:
            x, y = data.validation
            output = rule.model_at(problem.model, state.rule_state).apply(state.params, x)
            return {"accuracy": problem.accuracy(output, y)}

        return Run(train.init, epoch, static["epochs"], accuracy)

    def score(found: Any, measured: Any) -> jax.Array:
        return while_finite(measured["accuracy"], found["loss"])

    return program_of(run, score, static["epochs"], data)


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
