"""Parallel coordinates: every configuration a line through its values to its score."""

from collections.abc import Collection, Mapping

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from experiments.reporting import drawable

BOX = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
MOST_LEVELS = 5
"""Numbers with so few different values, and all texts, are spaced evenly, and their lines spread."""


def parallel_coordinates(
    columns: Mapping[str, np.ndarray], score: np.ndarray, label: str, logarithmic: Collection[str], best: int
) -> Figure:
    """Draws all configurations whose scores are finite, the best on top.

    Args:
      columns: values of every configuration, by hyper-parameter.
      score: of every configuration.
      label: of the scores.
      logarithmic: columns with a logarithmic axis.
      best: 1 if more is better, -1 if less is.
    """
    score, random = drawable(score), np.random.default_rng(0)
    order = np.argsort(best * score, kind="stable")[: np.isfinite(score).sum()]  # NaN comes last
    score, lines = score[order], []
    figure, axes = plt.subplots(figsize=(5 + 1.8 * len(columns), 5.5))
    of_all = {**{name: values[order] for name, values in columns.items()}, "score": score}
    for place, (name, at) in enumerate(of_all.items() if len(order) else ()):
        levels, log = np.unique(at), name in logarithmic
        if len(levels) <= MOST_LEVELS or at.dtype.kind not in "fiu":
            at = np.searchsorted(levels, at) + random.uniform(-0.03, 0.03, len(at)) * len(levels)
            marks, texts = np.arange(len(levels)), list(map(str, levels))
        else:
            at = np.log10(at) if log else at
            marks = np.linspace(at.min(), at.max(), 5)
            texts = [f"{10**mark if log else mark:.3g}" for mark in marks]
        low, span = marks[0], np.ptp(marks) or 1.0
        lines.append((at - low) / span)
        axes.axvline(place, color="0.3", linewidth=1)
        for height, text in zip((marks - low) / span, texts, strict=True):
            near = {"xytext": (4, 0), "textcoords": "offset points", "fontsize": "small", "va": "center"}
            axes.annotate(text, (place, height), bbox=BOX, **near)
    low, high = np.percentile(score, (10, 100) if best > 0 else (0, 90)) if len(order) else (0.0, 1.0)
    colours = ScalarMappable(Normalize(low, high), "viridis" if best > 0 else "viridis_r")
    for line, of_line in zip(np.transpose(lines), score, strict=True):
        axes.plot(line, color=colours.to_rgba(of_line), linewidth=0.9, alpha=0.7)
    axes.set_xticks(range(len(of_all)), [name.replace("_", " ") for name in of_all])
    axes.set(title="each is a line through its values", xlim=(-0.1, len(columns) + 0.4), yticks=[])
    figure.suptitle(f"{len(order)} configurations and their scores")
    figure.colorbar(colours, ax=axes, label=label, extend="min" if best > 0 else "max")
    return figure
