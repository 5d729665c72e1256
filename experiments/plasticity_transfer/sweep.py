"""Sweeps of the plasticity experiment: Adam's learning rate in meta-learning on half-spaces."""

from collections.abc import Mapping
from typing import Any

import jax

from experiments.plasticity_transfer.config import Config
from experiments.plasticity_transfer.models import MODELS
from experiments.plasticity_transfer.stages import meta_learning
from experiments.running import Run
from experiments.sweeping import Program, Sweepable, program_of, while_finite


def make(static: Mapping[str, Any]) -> Program:
    """Meta-learning of one model; a chunk is a pass through the points."""
    settings = {name: static[name] for name in ("width", "cap", "batch_size")}
    config = Config(rule_epochs=static["epochs"], points=(static["points"], 500), **settings)
    upstream = MODELS[static["model"]].upstream(config)
    if upstream is None:
        raise ValueError(f"model: expected one that learns upstream, got {static['model']!r}")

    def run(traced: dict[str, jax.Array]) -> Run:
        return meta_learning(upstream, config, traced["learning_rate"])

    def score(found: Any, measured: Any) -> jax.Array:
        return while_finite(found["test_balanced_accuracy"], found["loss"])

    return program_of(run, score, static["epochs"], ())


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
