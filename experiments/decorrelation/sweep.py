"""Sweeps of the decorrelation experiment: step sizes of R and of the weights."""

from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments import running
from experiments.decorrelation.__main__ import images
from experiments.decorrelation.config import Config
from experiments.decorrelation.runs import INPUTS, MOMENTUM, NETWORKS, RATES, STANDARD, Form, Numbers
from experiments.decorrelation.training import Carry, Images, accuracy, start_of, update
from experiments.sweeping import Program, Sweepable, check_at_most, program_of, while_finite

CHUNKS = 5


_images = cache(lambda source: images(Config(preset="full", data=source)))


def make(static: Mapping[str, Any]) -> Program:
    """A run of one rule on plain or decorrelated inputs; a chunk is a fifth of its updates."""
    data, batch_size = _images(static["data"]), static["batch_size"]
    check_at_most("batch_size", batch_size, data.train.x.shape[0], "images")
    updates = -(-static["updates"] // CHUNKS)
    network, inputs = NETWORKS[static["network"]], INPUTS[static["inputs"]]
    form = Form(network, static["rule"], inputs, MOMENTUM, None, updates, CHUNKS)

    def run(traced: dict[str, jax.Array]) -> running.Run:
        numbers = Numbers(traced["learning_rate"], {"eta": traced["eta"]}, *STANDARD)

        def init(key: jax.Array, data: Images) -> Carry:
            return start_of(form, data.train.x.shape[0], batch_size, key, numbers)

        def step(carry: Carry, number: Any, data: Images) -> tuple[Carry, dict[str, jax.Array]]:
            of_updates = number * updates + jnp.arange(updates)
            carry, (losses, _) = jax.lax.scan(partial(update, form, batch_size, data), carry, of_updates)
            return carry, {"loss": losses}

        def measure(carry: Carry, number: Any, data: Images) -> dict[str, jax.Array]:
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
        "rule": tuple(RATES),
        "network": tuple(NETWORKS),
        "inputs": ("decorrelated", *(name for name in INPUTS if name != "decorrelated")),
        "updates": 50,
        "batch_size": 64,
        "data": "sample",
    },
    make,
)
