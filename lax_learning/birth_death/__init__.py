"""Neuron birth-death: a population of neurons that resamples itself."""

from lax_learning.birth_death._dynamics import Draws, Events, State, draws, dynamics
from lax_learning.birth_death._population import follow

__all__ = ["Draws", "Events", "State", "draws", "dynamics", "follow"]
