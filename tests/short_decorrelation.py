"""Decorrelation with the notebook's longest runs cut where what it prints of them ends."""

from unittest.mock import patch

from experiments.decorrelation import __main__ as experiment
from experiments.decorrelation.config import Config
from experiments.decorrelation.runs import STUDIES, Run, notebook_runs

STEPS = {"two_layers": 2, "two_layers_fixed": 12}


def short_runs(config: Config) -> dict[str, Run]:
    """The notebook's runs."""
    return {
        name: run._replace(steps=STEPS.get(name, run.steps)) for name, run in notebook_runs(config).items()
    }


def main() -> int:
    """The command line."""
    with patch.dict(STUDIES, notebook=short_runs):
        return experiment.main()
