"""Credit assignment without backprop, as pure JAX functions.

Bad input raises a TypeError or ValueError when a function is called or traced, and the message names the
argument, the expected value and the given one. Docstrings list only errors that are not obvious.
"""

import lax_learning.rules as rules
from lax_learning import birth_death, data, decorrelation, estimators, metrics, online, plasticity, symbolic
from lax_learning._ensemble import ensemble
from lax_learning._grid import grid
from lax_learning._placement import gather, replicate
from lax_learning._sites.table import sites
from lax_learning._sites.tapped import tapped
from lax_learning.losses import accuracy, balanced_accuracy, softmax_cross_entropy, squared_error
from lax_learning.models import Model
from lax_learning.networks import convnet, mlp, rnn
from lax_learning.rules import *  # noqa: F403
from lax_learning.training import Train, TrainState, make_train
from lax_learning.types import Dynamics, Loss, Rule, Signals

__version__ = "0.2.0"

__all__ = [
    "Dynamics",
    "Loss",
    "Model",
    "Rule",
    "Signals",
    "Train",
    "TrainState",
    "accuracy",
    "balanced_accuracy",
    "birth_death",
    "convnet",
    "data",
    "decorrelation",
    "ensemble",
    "estimators",
    "gather",
    "grid",
    "make_train",
    "metrics",
    "mlp",
    "online",
    "plasticity",
    "replicate",
    "rnn",
    "sites",
    "softmax_cross_entropy",
    "squared_error",
    "symbolic",
    "tapped",
]
__all__ += rules.__all__
