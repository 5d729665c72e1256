"""Table and figures of the plasticity-transfer experiment."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import reporting

MODELS = (
    ("rnn", "RNN", "-"),
    ("pre_post_l2", "PrePost L2", "-"),
    ("pre_post_l3", "PrePost L3", "--"),
    ("pre_post_l4", "PrePost L4", ":"),
    ("pre_post_count_l2", "PrePostCount L2", "-"),
    ("pre_post_count_l3", "PrePostCount L3", "--"),
    ("pre_post_count_l4", "PrePostCount L4", ":"),
    ("pre_post_percent_l2", "PrePostPercent L2", "-."),
    ("post_count_l2", "PostCount L2", "-."),
    ("gradient_descent_l2", "gradient descent L2", "-"),
)
STYLES = {
    name: {"label": label, "color": colour, "linestyle": dashes}
    for (name, label, dashes), colour in zip(MODELS, plt.get_cmap("tab10").colors, strict=True)  # type: ignore[attr-defined]
}
COLUMNS = {
    "upstream_test_accuracy": "up",
    "downstream_test_accuracy": "down",
    "downstream_test_balanced_accuracy": "down, balanced",
    "downstream_test_accuracy_repeated": "down, repeated",
    "attempts": "attempts",
}
VARIABLES = {
    "model": ("1", "model"),
    "selection": ("1", "whether seeds below the least upstream accuracy are repeated"),
    "subseed": ("1", "index of the downstream seed"),
    "rule_epoch": ("1", "rule epochs of meta-learning"),
    "evaluation": ("1", "index of the evaluation"),
    "samples": ("1", "images seen downstream"),
    "attempts": ("1", "number of upstream runs"),
    "upstream_loss": ("nat", "cross-entropy after a pass over a batch"),
    "downstream_test_loss": ("nat", "cross-entropy on test images"),
    "upstream_*balanced_accuracy": ("1", "balanced accuracy on upstream points"),
    "downstream_*balanced_accuracy": ("1", "balanced accuracy on test images"),
    "*_table_*": ("1", "plasticity beta: change of a weight, by activity"),
    "*_axis_*": ("1", "entry of a plasticity table"),
}


def rows(results: xr.Dataset) -> list[dict[str, Any]]:
    """Returns the rows of `summary.json`: values at the end of each stage.

    Downstream metrics are averaged over the sub-seeds of each seed. In metrics with the suffix `_repeated`,
    seeds that ended below the least upstream accuracy are replaced by their repetitions.
    """
    summary = []
    ends = results.isel(rule_epoch=-1, evaluation=-1).mean("subseed", skipna=False)
    for name in results.model.values:
        one = ends.sel(model=name)
        metrics = {"attempts": one.attempts.values}
        for selection, suffix in {"all": "", "repeated": "_repeated"}.items():
            for metric, values in one.sel(selection=selection).data_vars.items():
                if str(metric).startswith(("upstream_", "downstream_")):
                    metrics[f"{metric}{suffix}"] = values.values
        summary += reporting.summary_rows(str(name), metrics, kind="model")
    return summary


def table(summary: list[dict[str, Any]]) -> str:
    """Returns the printed table: means and half-widths of 95 % intervals over seeds."""
    lines = [
        [STYLES[model]["label"], *(reporting.cell(of[c], ".3f", ".3f") if c in of else "-" for c in COLUMNS)]
        for (model,), of in reporting.by_part(summary, "model").items()
    ]
    return reporting.table(["model", *COLUMNS.values()], lines)


def figures(results: xr.Dataset) -> dict[str, Figure]:
    """Draws all figures for which there are results."""
    return reporting.drawn((learning_curves, comparison, tables), results)


def learning_curves(results: xr.Dataset) -> Figure:
    """Upstream loss and accuracy, and downstream accuracy, of all models against samples seen."""
    figure, (loss, up, down) = plt.subplots(1, 3, figsize=(17, 5.5))
    every = results.sel(selection="all")
    for name in results.model.values:
        one = every.sel(model=name)
        points = one.rule_epoch.values * results.attrs["points"]
        for axes, metric in ((loss, "upstream_loss"), (up, "upstream_test_balanced_accuracy")):
            if metric in one and np.isfinite(one[metric]).any():
                reporting.band(axes, points, one[metric].values, **STYLES[name])
        of_seeds = one.downstream_test_balanced_accuracy.mean("subseed", skipna=False)
        reporting.band(down, one.samples.values, of_seeds.values, **STYLES[name])
    loss.set(title="Upstream: loss after one batch", ylabel="cross-entropy in nats")
    up.set(title="Upstream: meta-learning", ylabel="balanced accuracy on test points", ylim=(0, 1))
    down.set(title="Downstream: one pass over MNIST", ylabel="balanced accuracy on test images", ylim=(0, 1))
    for axes, chance in ((loss, np.log(2)), (up, 0.5), (down, 0.1)):
        axes.axhline(chance, color="0.5", linewidth=0.8, linestyle=(0, (1, 3)))
        axes.set_xlabel("training samples seen")
        axes.set_xlim(left=0)
    reporting.legend_beside(figure, down)
    more = f", with {results.sizes['subseed']} downstream networks each; without repetitions; dotted: chance"
    return reporting.completed(figure, results, more=more)


def comparison(results: xr.Dataset) -> Figure:
    """Final accuracy of all models, upstream and downstream, with and without repetitions."""
    names = results.model.values.tolist()
    figure, both = plt.subplots(1, 2, figsize=(12, 0.5 * len(names) + 2.2), sharey=True)
    titles = {
        "upstream_test_accuracy": "Upstream",
        "downstream_test_accuracy": "Downstream: MNIST after one pass",
    }
    ends = results.isel(rule_epoch=-1, evaluation=-1).mean("subseed", skipna=False)
    for axes, (metric, title) in zip(both, titles.items(), strict=True):
        for selection, shift, marker in (("all", -0.12, "o"), ("repeated", 0.12, "D")):
            for i, name in enumerate(names if metric in ends else ()):
                of_seeds = ends[metric].sel(selection=selection, model=name).values
                colour = STYLES[name]["color"]
                axes.plot(of_seeds, np.full(of_seeds.size, i + shift), "|", color=colour, alpha=0.5)
                face = colour if selection == "all" else "white"
                style = {"fmt": marker, "color": colour, "markerfacecolor": face}
                reporting.bars(axes, [i + shift], [of_seeds], "x", **style)
        axes.set(title=title, xlabel="accuracy on test samples")
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlim(0, 1)
    both[0].set_yticks(range(len(names)), [STYLES[name]["label"] for name in names])
    both[0].set_ylim(len(names) - 0.5, -0.5)
    more = f", with {results.sizes['subseed']} downstream networks each; filled: first runs"
    more += ", open: with repeated seeds, strokes: single seeds"
    return reporting.completed(figure, results, more=more, grid=())


def tables(results: xr.Dataset) -> Figure | None:
    """Heat maps of the learned tables, averaged over seeds."""
    names = [str(n) for n in results.model.values if f"output_table_{n}" in results]
    if not names:
        return None
    figure, grid = plt.subplots(len(names), 2, figsize=(11, 2.1 * len(names)), squeeze=False)
    for name, line in zip(names, grid, strict=True):
        for part, axes in zip(("hidden", "output"), line, strict=True):
            _heat_map(axes, results, name, part)
    figure.suptitle("Learned plasticity tables, mean over seeds")
    return figure


def _heat_map(axes: Axes, results: xr.Dataset, name: str, part: str) -> None:
    """Draws one table, with its leading axes flattened."""
    variable = f"{part}_table_{name}"
    if variable not in results:
        axes.set_axis_off()
        return
    values = results[variable].sel(selection="all").mean("seed").values
    rows_of = reporting.drawable(values.reshape(-1, values.shape[-1]))
    limit = float(np.max(np.abs(rows_of), where=np.isfinite(rows_of), initial=0.0)) or 1.0
    image = axes.imshow(rows_of, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axes.figure.colorbar(image, ax=axes, label="beta")
    post = "is label" if part == "output" else "post fired"
    is_history = values.shape[0] > 2 and values.ndim == 2 and not name.startswith("post_count")
    if is_history:
        axes.set(ylabel="pre history", xlabel="" if part == "output" else "post history")
        if part == "output":
            axes.set_xticks((0, 1), ("is label", "is not"))
    elif values.ndim == 3:
        axes.set_yticks(range(4), [f"pre {p}, {post} {q}" for p in (0, 1) for q in (0, 1)], fontsize=7)
        axes.set_xlabel("inputs that fired" + (", 5 % bins" if values.shape[-1] == 21 else ""))
    elif values.shape == (2, 2):
        axes.set(xticks=(0, 1), yticks=(0, 1), xlabel=post, ylabel="pre fired")
        for (i, j), value in np.ndenumerate(rows_of):
            colour = "white" if abs(value) > 0.6 * limit else "black"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour)
    else:
        axes.set_yticks((0, 1), [f"{post} 0", f"{post} 1"], fontsize=7)
        axes.set_xlabel("inputs that fired")
    axes.set_title(f"{STYLES[name]['label']}: {part}", fontsize=9)
