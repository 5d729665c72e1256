"""Sweeps of the birth-death experiment: speeds and learning rates, by the loss at the end."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.birth_death.__main__ import run_of
from experiments.birth_death.config import Config
from experiments.birth_death.problems import PROBLEMS, SCHEMES
from experiments.running import Run
from experiments.sweeping import Program, Sweepable, program_of

CHUNKS = 5


def make(static: Mapping[str, Any]) -> Program:
    """A run of one scheme on one problem; a chunk is a fifth of its steps."""
    config = Config(units=static["units"], batch_size=static["batch_size"])
    problem, scheme = PROBLEMS[static["problem"]](config), SCHEMES[static["scheme"]]
    times = -(-static["steps"] // CHUNKS) * np.arange(CHUNKS + 1)

    def run(traced: dict[str, jax.Array]) -> Run:
        alphas: Any = dict.fromkeys(problem.alphas, traced["alpha"])
        one = problem._replace(alphas=alphas, learning_rate=traced["learning_rate"])
        return run_of(one, scheme, config, times)

    return program_of(run, lambda found, measured: measured["loss"], CHUNKS, ())


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
