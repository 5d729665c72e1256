"""The benchmark of rules: `python -m benchmarks.rules --quick`.

All rules of the registry on all problems, each with the best of the same learning rates. A part is a rule on
a problem; finished parts are kept, and `--resume` goes on.
"""

import sys

import jax
import xarray as xr

from benchmarks.machine import run_with_table
from benchmarks.rules import report
from benchmarks.rules.config import Config
from benchmarks.rules.problems import PROBLEMS
from benchmarks.rules.runs import load, run_part
from experiments import harness


def held(config: Config, data: object) -> harness.Held:
    """The largest model's weights and feedback, at both ends of all runs of a part."""
    models = [PROBLEMS[problem].make_model() for problem in config.chosen.problems]
    params = [jax.eval_shape(model.init, jax.random.key(0)) for model in models]
    largest = max(params, key=lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree)))
    members = -(-config.runs // config.chosen.seeds)
    return harness.Held([largest] * 4, members=members)


EXPERIMENT = harness.Experiment(
    name="rules",
    config=Config,
    report=report,
    kind="part",
    unit="run",
    parts=lambda config: {name: config.runs for name in config.parts()},
    load=load,
    held=held,
    run_part=lambda name, config, data, folder, progress: run_part(name, config, data, progress),
    merge=lambda config, parts: xr.concat(parts, "part", join="outer", coords="minimal", data_vars="all"),
    compile_quickly=lambda config: config.quick,
)


def run(config: Config) -> xr.Dataset:
    """Runs all parts, and writes the tables beside the results."""
    return run_with_table(EXPERIMENT, config)


def main() -> int:
    """The command line."""
    return harness.command_line("rules", Config, run, package="benchmarks")


if __name__ == "__main__":
    sys.exit(main())
