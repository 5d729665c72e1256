"""Sweeps over the hyper-parameters of an experiment with Optuna: trials x seeds in one program.

Any number of workers can share a study, and a killed worker loses no finished trials.
"""

import sys

import xarray as xr

from experiments import harness
from experiments.sweep import report
from experiments.sweep.config import Config
from experiments.sweep.space import check_runs, read_space
from experiments.sweep.study import open_study, run_study

NAME = "sweep"


def run(config: Config) -> xr.Dataset:
    """Works on a study until all trials are finished, and returns the results of all trials."""
    sweepable = config.sweepable()
    space = read_space(config, sweepable)
    check_runs(config, space, sweepable)
    deciding = {**config.deciding(), "space": space.given}
    harness.open_folder(config.out, deciding, resume=config.resume, shared=True)
    harness.keep_compiled_programs(config.out / "checkpoints" / "compiled")
    study = open_study(config, sweepable, deciding)
    run_study(config, study, space, sweepable)
    results = report.as_dataset(study, space, sweepable)
    harness.publish(config.out, NAME, deciding, results, report)
    return results


def main() -> int:
    """Runs the command line and returns its exit code."""
    harness.use_all_cores()
    return harness.command_line(NAME, Config, run)


if __name__ == "__main__":
    sys.exit(main())
