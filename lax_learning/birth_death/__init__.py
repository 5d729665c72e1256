"""Neuron birth-death: a population of neurons that is resampled during training."""

from lax_learning.birth_death._dynamics import Draws, Events, State, draws, dynamics
from lax_learning.birth_death._population import follow

__all__ = ["Draws", "Events", "State", "draws", "dynamics", "follow"]
