"""The experiments that can be swept over."""

from experiments.birth_death.sweep import SWEEPABLE as BIRTH_DEATH
from experiments.decorrelation.sweep import SWEEPABLE as DECORRELATION
from experiments.microlearning.sweep import SWEEPABLE as MICROLEARNING
from experiments.plasticity_transfer.sweep import SWEEPABLE as PLASTICITY_TRANSFER
from experiments.sweeping import Sweepable
from experiments.symbolic_discriminator.sweep import SWEEPABLE as SYMBOLIC_DISCRIMINATOR

SWEEPABLES: dict[str, Sweepable] = {
    "microlearning": MICROLEARNING,
    "birth_death": BIRTH_DEATH,
    "decorrelation": DECORRELATION,
    "plasticity_transfer": PLASTICITY_TRANSFER,
    "symbolic_discriminator": SYMBOLIC_DISCRIMINATOR,
}
