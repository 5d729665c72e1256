"""Credit assignment without backprop, as pure JAX functions."""

from lax_learning import data, estimators, metrics, plasticity, symbolic
from lax_learning._ensemble import ensemble
from lax_learning._grid import Grid, grid
from lax_learning._placement import gather, replicate
from lax_learning._sites.table import sites
from lax_learning._sites.tapped import Tapped, tapped
from lax_learning.birth_death import BirthDeathState, Draws, Events, birth_death, uniform_draws
from lax_learning.decorrelated import (
    DecorrelatedState,
    decorrelated,
    decorrelated_rule,
    decorrelation_inputs,
    fold,
)
from lax_learning.decorrelation import (
    Decorrelated,
    DecorrelationState,
    decorrelate,
    decorrelation,
    decorrelation_loss,
)
from lax_learning.follow import follow
from lax_learning.losses import accuracy, balanced_accuracy, softmax_cross_entropy, squared_error
from lax_learning.models import Model
from lax_learning.networks import convnet, mlp, rnn
from lax_learning.rules import (
    backprop,
    direct_feedback_alignment,
    feedback_alignment,
    forward_gradient,
    kolen_pollack,
    node_perturbation,
    sign_symmetry,
    spsa,
    weight_perturbation,
)
from lax_learning.training import History, Train, TrainState, make_train
from lax_learning.types import Dynamics, Estimator, Loss, Rule, Signals

__version__ = "0.2.0"

__all__ = [
    "BirthDeathState",
    "Decorrelated",
    "DecorrelatedState",
    "DecorrelationState",
    "Draws",
    "Dynamics",
    "Estimator",
    "Events",
    "Grid",
    "History",
    "Loss",
    "Model",
    "Rule",
    "Signals",
    "Tapped",
    "Train",
    "TrainState",
    "accuracy",
    "backprop",
    "balanced_accuracy",
    "birth_death",
    "convnet",
    "data",
    "decorrelate",
    "decorrelated",
    "decorrelated_rule",
    "decorrelation",
    "decorrelation_inputs",
    "decorrelation_loss",
    "direct_feedback_alignment",
    "ensemble",
    "estimators",
    "feedback_alignment",
    "fold",
    "follow",
    "forward_gradient",
    "gather",
    "grid",
    "kolen_pollack",
    "make_train",
    "metrics",
    "mlp",
    "node_perturbation",
    "plasticity",
    "replicate",
    "rnn",
    "sign_symmetry",
    "sites",
    "softmax_cross_entropy",
    "spsa",
    "squared_error",
    "symbolic",
    "tapped",
    "uniform_draws",
    "weight_perturbation",
]
