"""The studies of critics: accuracy, libraries, hyper-parameters, depth and extensions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments.reporting import summary_rows
from experiments.symbolic_discriminator import critic_figures, spaces
from experiments.symbolic_discriminator.config import Config
from experiments.symbolic_discriminator.critics import judged_curves, parts_of
from experiments.symbolic_discriminator.points import points
from experiments.symbolic_discriminator.reading import (
    TRENDS,
    deciding,
    final,
    first_epoch_reaching,
    trends,
)
from experiments.symbolic_discriminator.spaces import STATIC, Configuration
from experiments.symbolic_discriminator.study import Part, Study
from lax_learning import symbolic

Rows = list[dict[str, Any]]


def _study(
    name: str,
    configurations: Callable[[Config], list[Configuration]],
    rows: Callable[[xr.Dataset], Rows],
    figures: Callable[[xr.Dataset], Mapping[str, Figure]],
    seeds: Callable[[Config], int] = lambda config: config.numbers.seeds,
) -> Study:
    def parts(config: Config) -> dict[str, Part]:
        groups = symbolic.group_by_shape(configurations(config), STATIC)
        return parts_of(name, groups, config, seeds(config))

    def merge(config: Config, found: Sequence[xr.Dataset]) -> xr.Dataset:
        results = xr.concat(found, "configuration", join="outer").sortby("configuration")
        chosen = configurations(config)
        fields = {field: ("configuration", [c[field] for c in chosen]) for field in chosen[0]}
        shown = judged_curves("quadratic", "none", config)
        variables = {
            "judged_curve": (("kind", "curve", "point"), np.asarray(shown)),
            "x": (("point",), np.asarray(points("normal", config.numbers.points, config.seed))[:, 0]),
        }
        return results.assign_coords(fields).assign(variables)

    return Study(parts, merge, rows, figures)


def of_each(results: xr.Dataset, study: str, field: str) -> Rows:
    """Accuracies of all configurations with the same value of a field, over configurations and seeds."""
    rows: Rows = []
    values = results[field].values
    for value in dict.fromkeys(values.tolist()):
        chosen = results.isel(configuration=np.flatnonzero(values == value))
        metrics = {name: final(chosen, name).ravel() for name in ("accuracy", "fresh_accuracy", "fresh_auc")}
        metrics["epochs_to_0.9"] = first_epoch_reaching(chosen, 0.9).ravel()
        metrics["seconds"] = chosen.seconds.values
        metrics["best"] = np.array([np.fmax.reduce(metrics["fresh_accuracy"])])
        rows += summary_rows(f"{study}: {value}", metrics, kind="part")
    return rows


def depth_rows(results: xr.Dataset) -> Rows:
    """Accuracies of every version."""
    numbered = results.assign_coords(
        version=("configuration", [f"v{i}" for i in results.configuration.values])
    )
    return of_each(numbered, "depth", "version")


def hyper_parameter_rows(results: xr.Dataset) -> Rows:
    """For each objective: accuracies, how many configurations follow which trend, and what decides."""
    rows, shares = of_each(results, "hyper_parameters", "objective"), []
    for objective in dict.fromkeys(results.objective.values.tolist()):
        chosen = results.isel(configuration=np.flatnonzero(results.objective.values == objective))
        followed = trends(chosen)
        counts = {trend: np.array([followed.count(trend) / len(followed)]) for trend in TRENDS}
        rows += summary_rows(f"trends: {objective}", counts, kind="part")
        for field, (share, low, high) in deciding(chosen).items():
            mean, *ends = (None if np.isnan(v) else v for v in (share, low, high))
            row = {"part": f"deciding: {objective}", "metric": field, "mean": mean, "ci95": ends}
            shares.append({**row, "n": chosen.sizes["configuration"]})
    return rows + shares


def extension_rows(results: xr.Dataset) -> Rows:
    """Accuracies of every extension, for each objective if there are more."""
    objectives = dict.fromkeys(results.objective.values.tolist())
    rows: Rows = []
    for objective in objectives:
        chosen = results.isel(configuration=np.flatnonzero(results.objective.values == objective))
        rows += of_each(chosen, f"extensions: {objective}", "extension")
    return rows


STUDIES: dict[str, Study] = {
    "accuracy": _study(
        "accuracy",
        spaces.accuracy,
        lambda results: of_each(results, "accuracy", "objective"),
        critic_figures.accuracy,
    ),
    "libraries": _study(
        "libraries",
        spaces.libraries,
        lambda results: of_each(results, "libraries", "library"),
        critic_figures.libraries,
    ),
    "hyper_parameters": _study(
        "hyper_parameters",
        spaces.hyper_parameters,
        hyper_parameter_rows,
        critic_figures.hyper_parameters,
        seeds=lambda config: 1,
    ),
    "depth": _study("depth", spaces.depth, depth_rows, critic_figures.depth),
    "extensions": _study("extensions", spaces.extensions, extension_rows, critic_figures.extensions),
}
