"""Comparison of all rules: `python -m benchmarks.rules --quick`.

Runs all rules of the registry on all problems, each with the best learning rate of a common set. A part is
one rule on one problem; `--resume` keeps finished parts.
"""

import sys
from functools import partial

import jax
import xarray as xr

from benchmarks import machine
from benchmarks.rules import report
from benchmarks.rules.config import Config
from benchmarks.rules.problems import PROBLEMS
from benchmarks.rules.runs import load, run_part
from experiments import harness, memory


def held(config: Config, data: object) -> harness.Held:
    """Memory of a run: weights and feedback of the largest model, before and after training."""
    inits = [PROBLEMS[problem].model.init for problem in config.chosen.problems]
    params = [jax.eval_shape(init, jax.random.key(0)) for init in inits]
    members = -(-config.runs // config.chosen.seeds)
    return harness.Held([max(params, key=memory.bytes_of)] * 4, members=members)


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


run = partial(machine.run_with_table, EXPERIMENT)
main = partial(machine.command_line, "rules", Config, run)

if __name__ == "__main__":
    sys.exit(main())
