"""The runs of the decorrelation experiment as its tables and figures read them."""

import numpy as np
import xarray as xr

NOTEBOOK = {
    "alone": "decorrelation alone",
    "one_layer": "one decorrelated layer",
    "two_layers": "two decorrelated layers",
    "two_layers_fixed": "two layers, R held at the identity",
}
PUBLISHED = {
    "alone": [106.560814, 92.458618, 67.835510, 49.946434, 37.211742, 27.915833, 20.952473, 15.865977,
              12.110641, 9.355850, 7.313002],
    "one_layer": [106.638420, 92.378510, 67.550423, 50.074562, 37.256287, 27.816923, 20.886711, 15.840314,
                  12.159686, 9.431981, 7.337277],
    "two_layers_fixed": [111.116158, 110.478119, 110.325562, 110.372955, 110.450310, 110.519104, 110.553780,
                         110.941040, 110.781067, 111.277313, 111.346657, 111.523827, 112.008949],
}  # fmt: skip
"""Decorrelation losses that the notebook prints, summed over the batches of an epoch. It names the last of
these a run with R learned at 1e-5."""


def best_rate(one: xr.Dataset) -> xr.Dataset:
    """A run at the learning rate with the best mean accuracy on the validation images at the end."""
    finished = one.isel(step=np.flatnonzero(np.isfinite(one.updates.values)))
    finished = finished.isel(rate=np.flatnonzero(np.isfinite(finished.learning_rate.values)))
    accuracy = finished.validation_accuracy.isel(step=-1).mean("seed", skipna=False)
    final = np.nan_to_num(accuracy.values, nan=-1.0)  # a rate at which a seed diverged is the last choice
    return finished.isel(rate=int(final.argmax()))


def over_layers(of_layers: xr.DataArray) -> xr.DataArray:
    """The sum over the layers of a network: NaN if one is."""
    return of_layers.sum("layer", skipna=False)


def runs_in(results: xr.Dataset, study: str) -> dict[str, xr.Dataset]:
    """The runs of a study, each at its best learning rate."""
    names = results.run.values[results.study.values == study]
    best = {str(name): best_rate(results.sel(run=name)) for name in names}
    return {name: one.isel(layer=slice(0, int(one.num_layers))) for name, one in best.items()}


def elapsed(one: xr.Dataset) -> np.ndarray:
    """Seconds of one seed up to every measurement, at the median pace."""
    return updates_of(one) * seconds_per_update(one)


def seconds_per_update(one: xr.Dataset) -> float:
    """The median over the intervals between measurements, of one seed, compilation apart."""
    return float(np.median(one.seconds.values[1:] / np.diff(updates_of(one))))


def updates_of(one: xr.Dataset) -> np.ndarray:
    """Updates up to every measurement: step 0 is without learning."""
    return one.updates.values


def first_reaching(x: np.ndarray, accuracy: np.ndarray, level: float) -> float:
    """The x at which the mean over seeds of an accuracy `[seed, x]` first reaches a level; NaN if nowhere."""
    reached = np.flatnonzero(accuracy.mean(axis=0) >= level)
    return float(x[reached[0]]) if reached.size else float("nan")
