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
VARIABLES = {
    "source": ("1", "source of curves"),
    "curve": ("1", "number of the curve"),
    "point": ("1", "number of the point"),
    "points": ("1", "points at which curves are sampled"),
    "kind": ("1", "formulas or untrained networks"),
    "x": ("1", "input"),
    "value": ("1", "value of a curve"),
    "judged_curve": ("1", "curve that critics judge"),
    "logits": ("1", "logit of a curve after training"),
    "configuration": ("1", "number of the configuration"),
    "objective": ("1", "objective of a critic"),
    "library": ("1", "library of formulas"),
    "extension": ("1", "what a critic sees beside values, and how"),
    "latents": ("1", "curves of each kind in a step, or values of the latents of a fit"),
    "layers": ("1", "hidden layers of a critic"),
    "width": ("1", "width of the hidden layers"),
    "iterations": ("1", "steps of a critic in an epoch"),
    "penalty": ("1", "weight of the gradient penalty"),
    "decay": ("1", "L2 decay"),
    "bin": ("1", "number of the bin of epochs"),
    "epoch": ("1", "epoch at the end of a bin"),
    "*_auc": ("1", "area under the receiver operating characteristic"),
    "classifier": ("1", "classifier"),
    "run": ("1", "cost of a logit, and weight of the critic"),
    "step": ("1", "number of the measurement"),
    "updates": ("1", "updates before the measurement"),
    "weight": ("1", "weight of the critic"),
    "fit_loss": ("1", "mean squared error of the fit"),
    "mean_logit": ("1", "mean logit of the latents"),
    "*judged_real": ("1", "share that a critic takes for formulas"),
    "min_correlation": ("1", "least over latents of the largest |correlation| with a component"),
    "components_found": ("1", "least over components of the largest |correlation| with a latent"),
    "latent": ("1", "number of the latent"),
    "component": ("1", "number of the component"),
    "components": ("1", "values of the true components"),
    "prediction": ("1", "values of the fit"),
    "target": ("1", "values of the target"),
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
        lines = [
            [part.partition(": ")[2], *(reporting.cell(of[m]) if m in of else "-" for m in metrics)]
            for (part,), of in reporting.by_part(found, "part").items()
        ]
        header = [kind.replace("_", " "), *(metric.replace("_", " ") for metric in metrics)]
        tables.append(reporting.table(header, lines))
    return "\n\n".join(tables)


def figures(results: xr.DataTree) -> Figures:
    """All figures by name."""
    of_studies = [STUDIES[name].figures(node.to_dataset()) for name, node in results.children.items()]
    return {name: figure for of_study in of_studies for name, figure in of_study.items()}
