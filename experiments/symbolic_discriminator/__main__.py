"""Studies of symbolic discriminators: steps 15.1 to 15.5 and 7 of the notebook, and further ones.

Based on the notebook of the symrep project (2022) on the symbolic discriminator without a trained generator,
which ends with the question which hyper-parameters matter.
"""

import sys
from collections.abc import Mapping
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import xarray as xr

from experiments import harness, memory
from experiments.sweeping import Program, Sweepable
from experiments.symbolic_discriminator import report, spaces
from experiments.symbolic_discriminator.config import Config
from experiments.symbolic_discriminator.critics import BINS_A_STEP, schedule, training
from experiments.symbolic_discriminator.report import STUDIES
from experiments.symbolic_discriminator.study import Part


def held(config: Config, data: None) -> harness.Held:
    """First layers and metrics of the critics that are drawn at random."""
    numbers, (epochs_a_bin, _) = config.chosen, schedule(config.chosen.epochs)
    measured = memory.floats(3, epochs_a_bin * BINS_A_STEP, spaces.SMALL["iterations"])
    drawn = memory.floats(numbers.configurations, numbers.points, spaces.SMALL["width"])
    return harness.Held((memory.floats(numbers.points, spaces.SMALL["width"]), measured), drawn)


def parts_of(config: Config) -> dict[str, Part]:
    """Returns the parts of all chosen studies, one study after another."""
    return {name: part for study in config.studies for name, part in STUDIES[study].parts(config).items()}


def merge(config: Config, found: list[xr.Dataset]) -> xr.DataTree:
    """Merges the results of the parts into one group per study."""
    left, merged = iter(found), {}
    for name in config.studies:
        of_study = islice(left, len(STUDIES[name].parts(config)))
        merged[name] = STUDIES[name].merge(config, list(of_study))
    return xr.DataTree.from_dict(merged)


EXPERIMENT = harness.Experiment(
    name="symbolic_discriminator",
    config=Config,
    report=report,
    kind="part",
    unit="step",
    parts=lambda config: {name: part.steps for name, part in parts_of(config).items()},
    held=held,
    run_part=lambda name, config, data, folder, progress: parts_of(config)[name].run(folder, progress),
    merge=merge,
    compile_quickly=lambda config: config.preset == "sample",
)
run, main = EXPERIMENT.run, EXPERIMENT.main


def swept(static: Mapping[str, Any]) -> Program:
    """Training of a critic for at least 10 epochs; a chunk is a step of `critics.training`."""
    run = training(dict(static), Config(epochs=max(10, static["epochs"])))

    def advance(carry: Any, number: Any, shared: Any) -> tuple[Any, jax.Array]:
        carry, metrics = run.step(carry, number, shared)
        return carry, jnp.mean(metrics["fresh_accuracy"])

    return Program(run.init, advance, run.num_steps)


SWEEPABLE = Sweepable(
    "accuracy on new curves",
    "maximize",
    {name: spaces.SMALL[name] for name in ("learning_rate", "penalty", "decay")},
    {
        "objective": ("bce", "wgan"),
        "library": tuple(spaces.LIBRARIES),
        "extension": tuple(spaces.EXTENSIONS),
        **{name: spaces.SMALL[name] for name in ("latents", "layers", "width", "iterations")},
        "epochs": 200,
    },
    swept,
)

if __name__ == "__main__":
    sys.exit(main())
