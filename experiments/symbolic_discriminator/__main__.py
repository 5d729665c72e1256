"""Studies of symbolic discriminators: steps 15.1 to 15.5 and 7 of the notebook, and further ones.

Based on the notebook of the symrep project (2022) on the symbolic discriminator without a trained generator,
which ends with the question which hyper-parameters matter.
"""

import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import xarray as xr

from experiments import harness, memory
from experiments.sweeping import Program, Sweepable
from experiments.symbolic_discriminator import report, spaces
from experiments.symbolic_discriminator.config import Config
from experiments.symbolic_discriminator.critics import schedule, training
from experiments.symbolic_discriminator.report import STUDIES
from experiments.symbolic_discriminator.study import Part


def held(config: Config, data: None) -> harness.Held:
    """First layers and metrics of the critics that are drawn at random."""
    numbers, cut = config.chosen, schedule(config.chosen.epochs)
    measured = memory.floats(3, cut.epochs // cut.steps, spaces.SMALL["iterations"])
    drawn = memory.floats(numbers.configurations, numbers.points, spaces.SMALL["width"])
    return harness.Held((memory.floats(numbers.points, spaces.SMALL["width"]), measured), drawn)


def parts_of(config: Config) -> dict[str, Part]:
    """Returns the parts of all chosen studies, one study after another."""
    return {name: part for study in config.studies for name, part in STUDIES[study].parts(config).items()}


def merge(config: Config, found: list[xr.Dataset]) -> xr.DataTree:
    """Merges the results of the parts into one group per study."""
    left, of_studies = iter(found), {}
    for name in config.studies:
        of_study = [next(left) for _ in STUDIES[name].parts(config)]
        of_studies[name] = STUDIES[name].merge(config, of_study)
    return xr.DataTree.from_dict(of_studies)


EXPERIMENT = harness.Experiment(
    name="symbolic_discriminator",
    config=Config,
    report=report,
    kind="part",
    unit="ms (estimated)",
    parts=lambda config: {name: part.cost for name, part in parts_of(config).items()},
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
        "library": ("quadratic", *(name for name in spaces.LIBRARIES if name != "quadratic")),
        "extension": tuple(spaces.EXTENSIONS),
        **{name: spaces.SMALL[name] for name in ("latents", "layers", "width", "iterations")},
        "epochs": 200,
    },
    swept,
)

if __name__ == "__main__":
    sys.exit(main())
