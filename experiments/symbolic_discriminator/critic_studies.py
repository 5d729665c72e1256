"""The studies of critics: accuracy, libraries, hyper-parameters, depth and extensions."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import xarray as xr

from experiments.reporting import summary_rows
from experiments.symbolic_discriminator import critic_figures, reading, spaces
from experiments.symbolic_discriminator.config import Config
from experiments.symbolic_discriminator.critics import METRICS, costs, judged_curves, run_group
from experiments.symbolic_discriminator.points import points
from experiments.symbolic_discriminator.reading import TRENDS, by_objective, deciding, final, trends
from experiments.symbolic_discriminator.study import Figures, Part, Rows, Study


def of_each(results: xr.Dataset, study: str, field: str) -> Rows:
    """Accuracies of all configurations with the same value of a field, over configurations and seeds."""
    rows, values = [], results[field].values
    for value in dict.fromkeys(values.tolist()):
        chosen = results.isel(configuration=np.flatnonzero(values == value))
        metrics = {name: final(chosen, name).ravel() for name in METRICS}
        metrics["epochs_to_0.9"] = reading.first_epoch_reaching(chosen, 0.9).ravel()
        metrics["seconds"] = chosen.seconds.values
        metrics["best"] = np.array([np.fmax.reduce(metrics["fresh_accuracy"])])
        rows += summary_rows(f"{study}: {value}", metrics, kind="part")
    return rows


def depth_rows(results: xr.Dataset) -> Rows:
    """Accuracies of every version."""
    versions = [f"v{i}" for i in results.configuration.values]
    return of_each(results.assign_coords(version=("configuration", versions)), "depth", "version")


def hyper_parameter_rows(results: xr.Dataset) -> Rows:
    """For each objective: accuracies, how many configurations follow which trend, and what decides."""
    rows, shares = of_each(results, "hyper_parameters", "objective"), []
    for objective, chosen in by_objective(results).items():
        followed = trends(chosen)
        counts = {trend: np.array([followed.count(trend) / len(followed)]) for trend in TRENDS}
        rows += summary_rows(f"trends: {objective}", counts, kind="part")
        for field, found in deciding(chosen).items():
            mean, *ends = (None if np.isnan(v) else v for v in found)
            row = {"part": f"deciding: {objective}", "metric": field, "mean": mean, "ci95": ends}
            shares.append({**row, "n": chosen.sizes["configuration"]})
    return rows + shares


def extension_rows(results: xr.Dataset) -> Rows:
    """Accuracies of every extension, for each objective if there are more."""
    chosen = by_objective(results).items()
    return [row for name, of in chosen for row in of_each(of, f"extensions: {name}", "extension")]


def _study(name: str, rows: Callable[[xr.Dataset], Rows], figures: Callable[[xr.Dataset], Figures]) -> Study:
    configurations = getattr(spaces, name)

    def parts(config: Config) -> dict[str, Part]:
        made, seeds = {}, 1 if name == "hyper_parameters" else config.chosen.seeds
        for group in spaces.group_by_shape(configurations(config), spaces.STATIC):
            run = partial(run_group, group, config, seeds)
            made[f"{name}-{spaces.name_of(group.static)}"] = Part(run, sum(costs(group, config, seeds)))
        return made

    def merge(config: Config, found: Sequence[xr.Dataset]) -> xr.Dataset:
        results = xr.concat(found, "configuration", join="outer").sortby("configuration")
        chosen = configurations(config)
        fields = {field: ("configuration", [c[field] for c in chosen]) for field in chosen[0]}
        x = np.asarray(points("normal", config.chosen.points, config.seed))[:, 0]
        shown = np.asarray(judged_curves("quadratic", "none", config))
        variables = {"judged_curve": (("kind", "curve", "point"), shown), "x": ("point", x)}
        return results.assign_coords(fields).assign(variables)

    return Study(parts, merge, rows, figures)


_ROWS = {
    "accuracy": partial(of_each, study="accuracy", field="objective"),
    "libraries": partial(of_each, study="libraries", field="library"),
    "hyper_parameters": hyper_parameter_rows,
    "depth": depth_rows,
    "extensions": extension_rows,
}
STUDIES = {name: _study(name, rows, getattr(critic_figures, name)) for name, rows in _ROWS.items()}
