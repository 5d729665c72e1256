"""All studies in the notebook's order, with the table and the figures of their results."""

from itertools import groupby

import xarray as xr
from matplotlib.figure import Figure

from experiments import reporting
from experiments.symbolic_discriminator import activations, critic_studies, fixed_set, regularised
from experiments.symbolic_discriminator.study import Rows, Study

STUDIES: dict[str, Study] = {
    "activations": activations.STUDY,
    **critic_studies.STUDIES,
    "fixed_set": fixed_set.STUDY,
    "regularised": regularised.STUDY,
}
VARIABLES = {
    "source": ("1", "source of curves"),
    "curve": ("1", "index of the curve"),
    "point": ("1", "index of the point"),
    "points": ("1", "points at which curves are sampled"),
    "kind": ("1", "formulas or untrained networks"),
    "x": ("1", "input"),
    "value": ("1", "value of a curve"),
    "judged_curve": ("1", "value of a curve that critics judge"),
    "logits": ("1", "logit of a curve after training"),
    "configuration": ("1", "index of the configuration"),
    "objective": ("1", "objective of a critic"),
    "library": ("1", "library of formulas"),
    "extension": ("1", "additional input of a critic"),
    "latents": ("1", "curves of each kind per step, or values of the latents of a fit"),
    "layers": ("1", "hidden layers of a critic"),
    "width": ("1", "width of the hidden layers"),
    "iterations": ("1", "steps of a critic per epoch"),
    "penalty": ("1", "weight of the gradient penalty"),
    "decay": ("1", "L2 decay"),
    "bin": ("1", "index of the bin of epochs"),
    "epoch": ("1", "epoch at the end of a bin"),
    "*_auc": ("1", "area under the receiver operating characteristic"),
    "classifier": ("1", "classifier"),
    "run": ("1", "cost of the critic's logit, and weight"),
    "step": ("1", "index of the measurement"),
    "updates": ("1", "updates before the measurement"),
    "weight": ("1", "weight of the critic"),
    "fit_loss": ("1", "mean squared error of the fit"),
    "mean_logit": ("1", "mean logit of the latents"),
    "*judged_real": ("1", "share that a critic judges to be formulas"),
    "min_correlation": ("1", "minimum over latents of the largest |correlation| with a component"),
    "components_found": ("1", "minimum over components of the largest |correlation| with a latent"),
    "latent": ("1", "index of the latent"),
    "component": ("1", "index of the component"),
    "components": ("1", "values of the true components"),
    "prediction": ("1", "values of the fit"),
    "target": ("1", "values of the target"),
}


def rows(results: xr.DataTree) -> Rows:
    """Returns the rows of `summary.json`: means and 95 % intervals by part and metric."""
    return [row for name, node in results.children.items() for row in STUDIES[name].rows(node.to_dataset())]


def table(summary: Rows) -> str:
    """Returns one table for each group of parts with the same metrics."""
    tables = []
    for kind, of_kind in groupby(summary, key=lambda row: row["part"].partition(": ")[0]):
        found = list(of_kind)
        metrics = list(dict.fromkeys(row["metric"] for row in found))
        lines = [
            [part.partition(": ")[2], *(reporting.cell(of[m]) if m in of else "-" for m in metrics)]
            for (part,), of in reporting.by_part(found, "part").items()
        ]
        tables.append(reporting.table([text.replace("_", " ") for text in (kind, *metrics)], lines))
    return "\n\n".join(tables)


def figures(results: xr.DataTree) -> dict[str, Figure]:
    """Draws all figures."""
    made = {}
    for name, node in results.children.items():
        made |= reporting.drawn(STUDIES[name].figures, node.to_dataset())
    return made
