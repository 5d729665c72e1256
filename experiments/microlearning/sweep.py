"""Sweeps of the microlearning experiment: its rules, by accuracy on the validation images."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import optax

import lax_learning as ll
from experiments.microlearning.config import Config
from experiments.microlearning.networks import make_problem, seen_by
from experiments.microlearning.rules import FORMS, GAIN
from experiments.registry import rule_of
from experiments.running import Run
from experiments.settings import POSITIVE
from experiments.sweeping import Program, Sweepable, check_at_most, program_of, while_finite

images = cache(lambda source: ll.data.mnist(jax.random.key(0), source))


def make(static: Mapping[str, Any]) -> Program:
    """A run of one rule; a chunk is an epoch."""
    name: str = static["rule"]
    problem = make_problem(Config(rules=(name,), network=static["network"], hidden=(static["hidden"],)))
    model, loss = problem.model, problem.loss
    data = seen_by(problem, images(static["data"]))
    num_images = data.train.x.shape[0]
    check_at_most("batch_size", static["batch_size"], num_images, "images")
    per_epoch = num_images // static["batch_size"]

    def run(traced: dict[str, jax.Array]) -> Run:
        optimizer = optax.sgd(traced["learning_rate"])
        hyper = {"sigma": traced["sigma"], "decay": traced["decay"], "gain": GAIN, "noise": "rademacher"}
        rule = rule_of(FORMS.get(name, name), optimizer=optimizer, **hyper)(model, loss)
        sizes = {"batch_size": static["batch_size"], "num_updates": static["epochs"] * per_epoch}
        train = ll.make_train(rule, optimizer, init=model.init, every=per_epoch, **sizes)

        def epoch(state: ll.TrainState, number: Any, data: ll.data.Splits) -> Any:
            state, losses = train.advance(state, number * per_epoch, data)
            return state, {"loss": losses}

        def accuracy(state: ll.TrainState, number: Any, data: ll.data.Splits) -> dict[str, jax.Array]:
            x, y = data.validation
            output = rule.model_at(model, state.rule_state).apply(state.params, x)
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
    make,
    {"sigma": POSITIVE},
)
