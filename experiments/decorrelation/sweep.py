"""Sweeps of the decorrelation experiment: step sizes of R and of the weights."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import optax

import lax_learning as ll
from experiments.decorrelation.__main__ import Carry, Images, images, inputs, network_of, start_of, update
from experiments.decorrelation.config import Config
from experiments.decorrelation.runs import INPUTS, NETWORKS, RULES, STANDARD, Run
from experiments.sweeping import Program, Sweepable, check_at_most, while_finite

CHUNKS = 5


@cache
def _images(source: str) -> Images:
    return images(Config(preset="full", data=source))


def make(static: Mapping[str, Any]) -> Program:
    """A run of one rule on plain or decorrelated inputs; a chunk is a fifth of its updates."""
    data, batch_size = _images(static["data"]), static["batch_size"]
    check_at_most("batch_size", batch_size, data.train.x.shape[0], "images")
    updates = -(-static["updates"] // CHUNKS)

    def run(eta: Any) -> Run:
        return Run(
            "sweep", NETWORKS[static["network"]], RULES[static["rule"]].make, INPUTS[static["inputs"]](eta),
            lambda rate: optax.sgd(rate, momentum=0.9), (), None, STANDARD, updates, CHUNKS,
        )  # fmt: skip

    def init(key: jax.Array, traced: dict[str, jax.Array], data: Images) -> tuple[jax.Array, Carry]:
        eta, rate = traced["eta"], traced["learning_rate"]
        return eta, start_of(run(eta), data.train.x.shape[0], batch_size, key, rate)

    def advance(
        carry: tuple[jax.Array, Carry], number: Any, data: Images
    ) -> tuple[tuple[jax.Array, Carry], jax.Array]:
        eta, of_run = carry
        one = run(eta)

        def learn(of_run: Carry, number: Any) -> tuple[Carry, jax.Array]:
            of_run, (loss, _) = update(one, batch_size, data, of_run, number)
            return of_run, loss

        of_run, losses = jax.lax.scan(learn, of_run, number * updates + jnp.arange(updates))
        x, y = data.validation
        output = network_of(one, of_run).apply(of_run.params, inputs(one, jnp.asarray(x)))
        return (eta, of_run), while_finite(ll.accuracy(output, y), losses)

    return Program(init, advance, CHUNKS, data)


SWEEPABLE = Sweepable(
    "accuracy on the validation images",
    "maximize",
    {"eta": 1e-3, "learning_rate": 0.03},
    {
        "rule": tuple(RULES),
        "network": tuple(NETWORKS),
        "inputs": ("decorrelated", *(name for name in INPUTS if name != "decorrelated")),
        "updates": 50,
        "batch_size": 64,
        "data": "sample",
    },
    make,
)
