"""The table and the figures of the symbolic discriminator, study by study."""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import xarray as xr
from matplotlib.figure import Figure

from experiments import reporting
from experiments.symbolic_discriminator.studies import STUDIES


def rows(results: xr.DataTree) -> list[dict[str, Any]]:
    """The rows of `summary.json`: means and 95 % intervals by part and metric."""
    return [row for name, node in results.children.items() for row in STUDIES[name].rows(node.to_dataset())]


def table(summary: list[dict[str, Any]]) -> str:
    """A table for every group of parts with the same metrics."""
    tables = []
    for kind, of_kind in groupby(summary, key=lambda row: row["part"].partition(": ")[0]):
        found = list(of_kind)
        metrics = list(dict.fromkeys(row["metric"] for row in found))
        cells: dict[str, dict[str, str]] = {}
        for row in found:
            cells.setdefault(row["part"].partition(": ")[2], {})[row["metric"]] = reporting.cell(row)
        lines = [[part, *(of_part.get(metric, "-") for metric in metrics)] for part, of_part in cells.items()]
        header = [kind.replace("_", " "), *(metric.replace("_", " ") for metric in metrics)]
        tables.append(reporting.table(header, lines))
    return "\n\n".join(tables)


def figures(results: xr.DataTree) -> Mapping[str, Figure]:
    """All figures by name."""
    found: dict[str, Figure] = {}
    for name, node in results.children.items():
        found |= STUDIES[name].figures(node.to_dataset())
    return found
