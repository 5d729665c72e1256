"""Sweeps of the microlearning experiment: its rules, by accuracy on the validation images."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import optax

import lax_learning as ll
from experiments.microlearning.config import Config
from experiments.microlearning.networks import make_problem
from experiments.microlearning.rules import RULES, Options
from experiments.settings import POSITIVE
from experiments.sweeping import Program, Sweepable, check_at_most, while_finite

Traced = dict[str, jax.Array]

SWEPT = (
    "backprop", "kolen_pollack", "feedback_alignment", "direct_feedback_alignment", "node_perturbation",
    "weight_perturbation", "forward_gradient",
)  # fmt: skip


@cache
def images(source: str) -> ll.data.Splits:
    """The images, the same for all trials."""
    return jax.tree.map(jnp.asarray, ll.data.mnist(jax.random.key(0), source))


def make(static: Mapping[str, Any]) -> Program:
    """A run of one rule; a chunk is an epoch."""
    data = images(static["data"])
    model, loss, _ = make_problem(Config(hidden=(static["hidden"],)))
    num_images = data.train.x.shape[0]
    check_at_most("batch_size", static["batch_size"], num_images, "images")
    per_epoch = num_images // static["batch_size"]

    def accuracy(key: jax.Array, params: Any, state: Any, data: ll.data.Splits) -> jax.Array:
        x, y = data.validation
        return ll.accuracy(model.apply(params, x), y)

    def run(traced: Traced) -> ll.Train:
        optimizer = optax.sgd(traced["learning_rate"])
        options = Options(optimizer, sigma=traced["sigma"], decay=traced["decay"])
        return ll.make_train(
            RULES[static["rule"]](model, loss, options),
            optimizer,
            init=model.init,
            num_updates=static["epochs"] * per_epoch,
            batch_size=static["batch_size"],
            evaluate=accuracy,
            every=per_epoch,
        )

    def init(key: jax.Array, traced: Traced, data: ll.data.Splits) -> tuple[Traced, ll.TrainState]:
        return traced, run(traced).init(key, data)

    def advance(carry: tuple[Traced, ll.TrainState], number: Any, data: ll.data.Splits) -> Any:
        traced, state = carry
        train, step = run(traced), number * per_epoch
        state, losses = train.advance(state, step, data)
        return (traced, state), while_finite(train.evaluate(state, step + per_epoch, data), losses)

    return Program(init, advance, static["epochs"], data)


SWEEPABLE = Sweepable(
    "accuracy on the validation images",
    "maximize",
    {"learning_rate": 0.1, "sigma": 0.01, "decay": 0.02},
    {"rule": SWEPT, "hidden": 100, "batch_size": 100, "epochs": 5, "data": "sample"},
    make,
    {"sigma": POSITIVE},
)
