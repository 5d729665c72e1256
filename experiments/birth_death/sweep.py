"""Sweeps of the birth-death experiment: speeds and learning rates, by the loss at the end."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.birth_death.__main__ import Carry, interval, start_of
from experiments.birth_death.config import Config
from experiments.birth_death.problems import PROBLEMS, SCHEMES
from experiments.sweeping import Program, Sweepable

CHUNKS = 5


def make(static: Mapping[str, Any]) -> Program:
    """A run of one scheme on one problem; a chunk is a fifth of its steps."""
    config = Config(units=static["units"], batch_size=static["batch_size"])
    problem, scheme = PROBLEMS[static["problem"]](config), SCHEMES[static["scheme"]]
    steps = -(-static["steps"] // CHUNKS)

    def init(key: jax.Array, traced: dict[str, jax.Array], shared: Any) -> tuple[Any, Carry]:
        return traced, start_of(problem, key)

    def advance(carry: tuple[Any, Carry], number: Any, shared: Any) -> tuple[Any, jax.Array]:
        traced, of_run = carry
        alphas: Any = dict.fromkeys(problem.alphas, traced["alpha"])
        one = problem._replace(alphas=alphas, learning_rate=traced["learning_rate"])
        start = number * steps
        of_run = interval(one, scheme, config, of_run, start, start + steps, CHUNKS * steps)
        loss = problem.loss(jax.random.fold_in(of_run.key, 0), of_run.target, of_run.params)
        return (traced, of_run), jnp.asarray(loss)

    return Program(init, advance, CHUNKS)


SWEEPABLE = Sweepable(
    "loss at the end",
    "minimize",
    {"alpha": 1.0, "learning_rate": 0.02},
    {
        "scheme": ("clone", *(name for name in SCHEMES if name != "clone")),
        "problem": tuple(PROBLEMS),
        "steps": 1_000,
        "units": 50,
        "batch_size": 100,
    },
    make,
)
