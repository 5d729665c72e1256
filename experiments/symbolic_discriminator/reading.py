"""Analysis of critics' results: smoothed curves, the notebook's trends, and shares of the variance."""

import numpy as np
import xarray as xr

from experiments.reporting import resampled_shares, share_of_variance

CHANCE = 0.5
LEARNED = 0.65
TRENDS = ("quick, then constant", "quick, then dropping", "slow, still improving", "learns nothing")
FIELDS = ("latents", "iterations", "penalty", "layers", "width", "learning_rate")


def split(results: xr.Dataset, field: str) -> dict[str, xr.Dataset]:
    """Splits the configurations by the values of a field, in order of appearance."""
    values = results[field].values
    every = dict.fromkeys(values.tolist())
    return {value: results.isel(configuration=np.flatnonzero(values == value)) for value in every}


def horizon(epochs: int) -> int:
    """Returns the number of epochs to average over: a tenth of the run, at most the notebook's 500."""
    return min(500, max(1, epochs // 10))


def smoothed(results: xr.Dataset, metric: str = "accuracy") -> np.ndarray:
    """Averages a metric over the preceding `horizon` epochs, or fewer at the start, `[..., bin]`."""
    of_epochs, epochs = results[metric].values, results.epoch.values
    width = max(1, round(horizon(int(epochs[-1])) / epochs[0]))
    of_epochs = np.where(np.isfinite(of_epochs), of_epochs, np.nan)
    sums = np.cumsum(np.insert(of_epochs, 0, 0.0, axis=-1), axis=-1)
    ends = np.arange(1, of_epochs.shape[-1] + 1)
    starts = np.maximum(0, ends - width)
    return (sums[..., ends] - sums[..., starts]) / (ends - starts)


def final(results: xr.Dataset, metric: str = "accuracy") -> np.ndarray:
    """Averages a metric over the last epochs, `[configuration, seed]`."""
    return smoothed(results, metric)[..., -1]


def first_epoch_reaching(results: xr.Dataset, level: float) -> np.ndarray:
    """Returns the first epoch with a smoothed accuracy >= `level`, NaN if none; `[configuration, seed]`."""
    reached = smoothed(results, "fresh_accuracy") >= level
    epochs = results.epoch.values[np.argmax(reached, axis=-1)].astype(float)
    return np.where(reached.any(axis=-1), epochs, np.nan)


def trend(curve: np.ndarray) -> str:
    """Returns the name of the notebook's trend that a smoothed accuracy follows.

    A critic learns nothing if its accuracy never reaches 0.65, drops if it ends with less than three quarters
    of its best gain over chance, and is quick if it has 80 % of its final gain within a quarter of training.
    """
    gained = curve - CHANCE
    if not np.nanmax(curve) >= LEARNED:
        return TRENDS[3]
    if not gained[-1] >= 0.75 * np.nanmax(gained):
        return TRENDS[1]
    early = gained[: max(1, len(curve) // 4)]
    return TRENDS[0] if np.nanmax(early) >= 0.8 * gained[-1] else TRENDS[2]


def trends(results: xr.Dataset) -> list[str]:
    """Returns the trend of every configuration, for the mean over its seeds."""
    return [trend(curve) for curve in smoothed(results).mean(axis=1)]


def deciding(results: xr.Dataset) -> dict[str, tuple[float, float, float]]:
    """Returns the share of the variance of final accuracy, with 95 % bootstrap interval, by varying field."""
    accuracy, shares = final(results).mean(axis=1), {}
    for field in FIELDS:
        levels = results[field].values
        if len(np.unique(levels)) > 1:
            drawn = resampled_shares(accuracy, levels)
            ends = np.nanquantile(drawn, (0.025, 0.975)) if np.isfinite(drawn).any() else (np.nan, np.nan)
            shares[field] = (share_of_variance(accuracy, levels), float(ends[0]), float(ends[1]))
    return shares
