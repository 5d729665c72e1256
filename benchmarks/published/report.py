"""Report of published and our errors: rows of summary.json, the table, and a figure of errors by epoch."""

from typing import Any

import matplotlib.pyplot as plt
import xarray as xr
from matplotlib.figure import Figure

from benchmarks.published.entries import ENTRIES
from experiments import reporting

VARIABLES = {
    "error": ("%", "percentage of misclassified test images"),
    "loss": ("1", "mean loss over the batches of an epoch"),
}


def rows(results: xr.Dataset) -> list[dict[str, Any]]:
    """Returns our errors at every published epoch and at the end, with the published error at that epoch."""
    found = []
    for name in map(str, results.row.values):
        entry, of_row = ENTRIES[name], _errors(results, name)
        last = int(of_row.epoch[-1])
        for epoch in sorted({*(e for e in entry.errors if 0 < e < last), last}):
            (row,) = reporting.summary_rows(name, {"error": of_row.sel(epoch=epoch).values}, kind="row")
            found.append({**row, "epoch": epoch, "theirs": theirs(name, epoch, last)})
    return found


def theirs(name: str, epoch: int, last: int) -> str:
    """Formats the published error at an epoch; at our last epoch, the one at their last epoch."""
    errors = ENTRIES[name].errors
    if epoch in errors or not errors:
        return f"{errors[epoch]:g}" if errors else "not published"
    end = max(errors)
    return f"{errors[end]:g} ({f'after {end}' if end else 'at the end'})" if epoch == last else "-"


def table(summary: list[dict[str, Any]]) -> str:
    """Formats errors side by side, followed by sources, settings and differences."""
    header = ("source", "rule", "epoch", "theirs (%)", "ours (%)", "seeds")
    lines, notes = [], set()
    for row in summary:
        entry, ours = ENTRIES[row["row"]], reporting.cell(row, ".3g")
        rule, epoch, seeds = entry.rule.replace("_", " "), str(row["epoch"]), str(row["seeds"])
        lines.append((entry.source, rule, epoch, row["theirs"], ours, seeds))
        notes.add(f"- [{entry.source}]({entry.link}): {entry.setting}. Ours: {entry.why}.")
    return "\n".join([reporting.table(header, lines), "", *sorted(notes)])


def figures(results: xr.Dataset) -> dict[str, Figure]:
    """Draws test errors by epoch, one panel per source; crosses are published errors."""
    entries = {name: ENTRIES[name] for name in map(str, results.row.values)}
    sources = list(dict.fromkeys(entry.source for entry in entries.values()))
    size = 4.5 * len(sources), 4
    drawn, grid = plt.subplots(1, len(sources), figsize=size, squeeze=False)
    panels = dict(zip(sources, grid[0], strict=True))
    for name, entry in entries.items():
        axes, errors = panels[entry.source], _errors(results, name).isel(epoch=slice(1, None))
        label = entry.rule.replace("_", " ")
        reporting.band(axes, errors.epoch.values, errors.values, label=label, marker=".")
        at = [epoch or int(errors.epoch[-1]) for epoch in entry.errors]
        axes.plot(at, list(entry.errors.values()), "x", color=axes.lines[-1].get_color())
    ticks = [0.5, 1, 2, 5, 10, 20, 50, 100]
    for source, axes in panels.items():
        axes.set(title=source, xlabel="epochs", ylabel="error on test images (%)")
        axes.set(yscale="log", ylim=(0.4, 100))
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.legend(frameon=False, fontsize="small")
    return {"errors": reporting.completed(drawn, results, more="; crosses: published")}


def _errors(results: xr.Dataset, name: str) -> xr.DataArray:
    return results.error.sel(row=name).dropna("epoch", how="all")
