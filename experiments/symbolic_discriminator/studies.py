"""All studies of the experiment, in the notebook's order."""

from experiments.symbolic_discriminator import activations, critic_studies, fixed_set, regularised
from experiments.symbolic_discriminator.study import Study

STUDIES: dict[str, Study] = {
    "activations": activations.STUDY,
    **critic_studies.STUDIES,
    "fixed_set": fixed_set.STUDY,
    "regularised": regularised.STUDY,
}
