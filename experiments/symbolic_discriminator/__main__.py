"""The symbolic discriminator: steps 15.1 to 15.5 of its notebook, its studies, and step 7.

After the notebook on studying the symbolic discriminator without training the generator, of the symrep
project (2022), which ends on the wish to analyse which hyper-parameters decide.
"""

import json
import sys

import xarray as xr

from experiments import harness, memory
from experiments.symbolic_discriminator import report, spaces
from experiments.symbolic_discriminator.config import Config
from experiments.symbolic_discriminator.critics import schedule

NAME = "symbolic_discriminator"


def held(config: Config) -> harness.Held:
    """The first layer of every critic that is drawn at random; what is measured over a step, and updates."""
    numbers, cut = config.numbers, schedule(config.numbers.epochs)
    measured = memory.floats(3, cut.epochs // cut.steps, spaces.SMALL["iterations"])
    drawn = memory.floats(numbers.configurations, numbers.points, spaces.SMALL["width"])
    return harness.Held((memory.floats(numbers.points, spaces.SMALL["width"]), measured), drawn)


def run(config: Config) -> xr.DataTree:
    """Runs the studies into `config.out` and returns their results, a group for each."""
    harness.use_all_cores(compile_quickly=config.preset == "sample")
    harness.begin(config, held)
    of_study = {name: report.STUDIES[name].parts(config) for name in config.studies}
    parts = {name: part for found in of_study.values() for name, part in found.items()}

    found = harness.run_parts(
        config.out,
        "part",
        list(parts),
        lambda name, folder, progress: parts[name].run(folder, progress),
        steps=[part.cost for part in parts.values()],
        unit="ms (estimated)",
    )
    by_name = dict(zip(parts, found, strict=True))
    merged = {
        study: report.STUDIES[study].merge(config, [by_name[name] for name in names]).drop_encoding()
        for study, names in of_study.items()
    }
    results = xr.DataTree.from_dict(merged)
    results.attrs["config"] = json.dumps(config.deciding())
    harness.publish(config.out, NAME, config.deciding(), results, report)
    return results


def main() -> int:
    """The command line."""
    return harness.command_line(NAME, Config, run)


if __name__ == "__main__":
    sys.exit(main())
