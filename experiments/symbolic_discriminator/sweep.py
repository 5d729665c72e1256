"""Sweeps of the symbolic discriminator: its critics, by accuracy on curves not learned from."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.sweeping import Program, Sweepable
from experiments.symbolic_discriminator.config import Config
from experiments.symbolic_discriminator.critics import training
from experiments.symbolic_discriminator.spaces import EXTENSIONS, LIBRARIES, SMALL


def make(static: Mapping[str, Any]) -> Program:
    """Training of a critic for at least 10 epochs; a chunk is one of the steps in which they are cut."""
    run = training(dict(static), Config(epochs=max(10, static["epochs"])))

    def advance(carry: Any, number: Any, shared: Any) -> tuple[Any, jax.Array]:
        carry, metrics = run.step(carry, number, shared)
        return carry, jnp.mean(metrics["fresh_accuracy"])

    return Program(run.init, advance, run.num_steps)


SWEEPABLE = Sweepable(
    "accuracy on new curves",
    "maximize",
    {name: SMALL[name] for name in ("learning_rate", "penalty", "decay")},
    {
        "objective": ("bce", "wgan"),
        "library": ("quadratic", *(name for name in LIBRARIES if name != "quadratic")),
        "extension": tuple(EXTENSIONS),
        **{name: SMALL[name] for name in ("latents", "layers", "width", "iterations")},
        "epochs": 200,
    },
    make,
)
