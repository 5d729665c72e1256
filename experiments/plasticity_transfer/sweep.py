"""Sweeps of the plasticity experiment: Adam's learning rate in meta-learning on half-spaces."""

from collections.abc import Mapping
from typing import Any

import jax

from experiments.plasticity_transfer.config import Config
from experiments.plasticity_transfer.models import MODELS
from experiments.plasticity_transfer.stages import MetaCarry, meta_learning
from experiments.sweeping import Program, Sweepable, while_finite


def make(static: Mapping[str, Any]) -> Program:
    """Meta-learning of one model; a chunk is a pass through the points."""
    settings = {name: static[name] for name in ("width", "cap", "batch_size")}
    config = Config(rule_epochs=static["epochs"], points=(static["points"], 500), **settings)
    upstream = MODELS[static["model"]].upstream(config)
    if upstream is None:
        raise ValueError(f"model: expected one that learns upstream, got {static['model']!r}")

    def init(key: jax.Array, traced: dict[str, jax.Array], shared: Any) -> tuple[jax.Array, MetaCarry]:
        rate = traced["learning_rate"]
        return rate, meta_learning(upstream, config, rate)[0](key)

    def advance(
        carry: tuple[jax.Array, MetaCarry], number: Any, shared: Any
    ) -> tuple[tuple[jax.Array, MetaCarry], jax.Array]:
        rate, of_run = carry
        of_run, metrics = meta_learning(upstream, config, rate)[1](of_run, number, shared)
        return (rate, of_run), while_finite(metrics["test_balanced_accuracy"], metrics["loss"])

    return Program(init, advance, static["epochs"])


SWEEPABLE = Sweepable(
    "balanced accuracy on new points of the half-space",
    "maximize",
    {"learning_rate": 0.01},
    {
        "model": tuple(name for name, model in MODELS.items() if model.upstream(Config()) is not None),
        "epochs": 4,
        "points": 2_500,
        "batch_size": 100,
        "width": 100,
        "cap": 50,
    },
    make,
)
