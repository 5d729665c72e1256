"""Sweeps over the hyper-parameters of an experiment with Optuna: trials x seeds in one program.

Any number of workers can share a study, and a killed worker loses no finished trials.
"""

import sys

from experiments import harness
from experiments.sweep import report
from experiments.sweep.config import Config
from experiments.sweep.space import Space, check_runs, read_space
from experiments.sweep.study import run_study


def load(config: Config) -> Space:
    """Reads the search space, and checks that its trials can run."""
    space = read_space(config, config.sweepable())
    check_runs(config, space)
    return space


EXPERIMENT = harness.Experiment(
    name="sweep",
    config=Config,
    report=report,
    kind="trial",
    unit="trial",
    parts=lambda config: {f"{config.trials}": config.trials},  # more trials are another part
    load=load,
    held=lambda config, space: harness.Held(each=()),  # see `check_runs`
    run_part=run_study,
    merge=lambda config, parts: parts[0],
    shared=True,
)
run, main = EXPERIMENT.run, EXPERIMENT.main

if __name__ == "__main__":
    sys.exit(main())
