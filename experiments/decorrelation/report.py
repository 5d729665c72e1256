"""Tables of the decorrelation experiment."""

from typing import Any

import numpy as np
import xarray as xr

from experiments import reporting
from experiments.decorrelation import figures as reading
from experiments.decorrelation.figures import NOTEBOOK, elapsed, figures, over_layers, runs_in, updates_of

__all__ = ["figures", "rows", "table"]

COLUMNS = (
    "rate", "test accuracy", "loss", "remaining correlation", "largest R", "ms / update",
    "updates vs plain", "seconds vs plain",
)  # fmt: skip
VARIABLES = {
    "run": ("1", "run"),
    "study": ("1", "study of the run"),
    "rate": ("1", "index of the learning rate"),
    "step": ("1", "index of the measurement"),
    "layer": ("1", "index of the layer"),
    "*pixel": ("1", "index of a central pixel"),
    "loss": ("nat", "mean cross-entropy over updates since the last measurement"),
    "decorrelation_loss": ("1", "mean decorrelation loss over updates since the last measurement"),
    "correlation": ("1", "remaining squared correlations of the inputs of a layer"),
    "largest_r": ("1", "largest absolute entry of R"),
    "num_layers": ("1", "number of layers"),
    "updates": ("1", "updates before the measurement"),
    "moments_*": ("1", "second moment of two pixels before or after R"),
    "seconds": ("s", "time of one seed since the last measurement"),
}


def rows(results: xr.Dataset) -> list[dict[str, Any]]:
    """Returns the rows of `summary.json`: final values at the best learning rate; the notebook's by epoch."""
    summary = []
    for study in ("notebook", "gain", "choices"):
        runs = runs_in(results, study)
        for name, one in runs.items():
            last = one.isel(step=-1).assign(correlation=over_layers(one.correlation.isel(step=-1)))
            metrics = {m: last[m].values for m in ("test_accuracy", "loss", "correlation", "largest_r")}
            found = reporting.summary_rows(name, metrics, kind="run")
            found.append(_number(name, "learning_rate", float(one.learning_rate)))
            found.append(_number(name, "ms_per_update", 1e3 * reading.seconds_per_update(one)))
            plain = runs.get(f"{name.rpartition('-')[0]}-plain")
            if plain is not None and plain is not one:
                level = float(plain.test_accuracy.isel(step=-1).mean(skipna=False))
                for what, x in {"updates": updates_of, "seconds": elapsed}.items():
                    needed = reading.first_reaching(x(one), one.test_accuracy.values, level)
                    needed_plain = reading.first_reaching(x(plain), plain.test_accuracy.values, level)
                    share = needed / needed_plain if needed_plain else np.nan  # plain inputs: no gain
                    found.append(_number(name, f"{what}_share_of_plain", share))
            if study == "notebook":
                found += _by_epoch(name, one)
            summary += [{"study": study, **row} for row in found]
    return summary


def _number(run: str, metric: str, value: float) -> dict[str, Any]:
    mean = value if np.isfinite(value) else None
    return {"run": run, "metric": metric, "mean": mean, "ci95": [None] * 2, "n": 1}


def _by_epoch(name: str, one: xr.Dataset) -> list[dict[str, Any]]:
    """Returns sums over the batches of an epoch, as in the notebook; the loss is divided by batches - 1."""
    found, batches = [], float(np.diff(updates_of(one))[0])
    sums = {
        "bp_loss": one.loss.values * batches / max(batches - 1, 1),
        "decorrelation_loss": over_layers(one.decorrelation_loss).values * batches,
    }
    for metric, values in sums.items():
        for epoch, of_seeds in enumerate(values.T):
            (row,) = reporting.summary_rows(name, {metric: of_seeds}, kind="run")
            found.append({**row, "epoch": epoch, "seconds": float(one.seconds.values[epoch])})
    return found


def table(summary: list[dict[str, Any]]) -> str:
    """Returns the printed tables: the notebook's values by epoch, and final values of all runs."""
    return "\n\n".join(filter(None, (_notebook_table(summary), _end_table(summary))))


def _notebook_table(summary: list[dict[str, Any]]) -> str:
    by_epoch = [row for row in summary if "epoch" in row]
    names = list(dict.fromkeys(row["run"] for row in by_epoch))
    cells = {(row["run"], row["metric"], row["epoch"]): reporting.cell(row) for row in by_epoch}
    lines = []
    for epoch in sorted({row["epoch"] for row in by_epoch}):
        lines.append([str(epoch)])
        for name in names:
            lines[-1] += [cells.get((name, m, epoch), "") for m in ("bp_loss", "decorrelation_loss")]
    header = [f"{NOTEBOOK[name]}: {what}" for name in names for what in ("loss", "decorrelation")]
    return reporting.table(["epoch", *header], lines) if names else ""


def _end_table(summary: list[dict[str, Any]]) -> str:
    lines, at_the_end = [], (row for row in summary if "epoch" not in row)
    for (name,), of in reporting.by_part(at_the_end, "run").items():
        shares = [of.get(f"{what}_share_of_plain") for what in ("updates", "seconds")]
        lines.append([
            NOTEBOOK.get(name, name), reporting.cell(of["learning_rate"], "g"),
            *(reporting.cell(of[m]) for m in ("test_accuracy", "loss", "correlation", "largest_r")),
            reporting.cell(of["ms_per_update"], ".2f"),
            *("" if share is None else _share(share) for share in shares),
        ])  # fmt: skip
    return reporting.table(["run", *COLUMNS], lines)


def _share(row: dict[str, Any]) -> str:
    return "not reached" if row["mean"] is None else f"{row['mean']:.2f} x"
