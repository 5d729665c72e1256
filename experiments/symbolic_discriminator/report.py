"""All studies in the notebook's order, and the table and the figures of what they found."""

from itertools import groupby

import xarray as xr

from experiments import reporting
from experiments.symbolic_discriminator import activations, critic_studies, fixed_set, regularised
from experiments.symbolic_discriminator.study import Figures, Rows, Study

STUDIES: dict[str, Study] = {
    "activations": activations.STUDY,
    **critic_studies.STUDIES,
    "fixed_set": fixed_set.STUDY,
    "regularised": regularised.STUDY,
}


def rows(results: xr.DataTree) -> Rows:
    """The rows of `summary.json`: means and 95 % intervals by part and metric."""
    return [row for name, node in results.children.items() for row in STUDIES[name].rows(node.to_dataset())]


def table(summary: Rows) -> str:
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


def figures(results: xr.DataTree) -> Figures:
    """All figures by name."""
    of_studies = [STUDIES[name].figures(node.to_dataset()) for name, node in results.children.items()]
    return {name: figure for of_study in of_studies for name, figure in of_study.items()}
