"""Credit assignment without backprop, as pure JAX functions."""

from lax_learning import data, estimators, metrics, plasticity, symbolic
from lax_learning._sites.table import sites
from lax_learning._sites.tapped import Tapped, tapped
from lax_learning.birth_death import BirthDeathState, Draws, Events, birth_death, uniform_draws
from lax_learning.convolution import convolution, flatten, max_pool
from lax_learning.decorrelated import decorrelated, decorrelated_rule, fold
from lax_learning.decorrelation import (
    Decorrelated,
    DecorrelationState,
    decorrelate,
    decorrelation,
    decorrelation_loss,
    reads_of,
)
from lax_learning.ensemble import ensemble
from lax_learning.feedback import clip_by_forward_norm, forward_mask, with_feedback, without_feedback
from lax_learning.follow import follow
from lax_learning.layers import Layer, Reads, dense, dense_product
from lax_learning.losses import accuracy, balanced_accuracy, softmax_cross_entropy, squared_error
from lax_learning.models import Model
from lax_learning.networks import Network, mlp
from lax_learning.placement import gather, replicate
from lax_learning.recurrent import recurrent, rnn
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
from lax_learning.taps import pull_back
from lax_learning.training import History, Train, TrainState, make_train
from lax_learning.types import Dynamics, Estimator, Loss, Rule, Signals, StatefulRule

__version__ = "0.1.0"

__all__ = [
    "BirthDeathState",
    "Decorrelated",
    "DecorrelationState",
    "Draws",
    "Dynamics",
    "Estimator",
    "Events",
    "History",
    "Layer",
    "Loss",
    "Model",
    "Network",
    "Reads",
    "Rule",
    "Signals",
    "StatefulRule",
    "Tapped",
    "Train",
    "TrainState",
    "accuracy",
    "backprop",
    "balanced_accuracy",
    "birth_death",
    "clip_by_forward_norm",
    "convolution",
    "data",
    "decorrelate",
    "decorrelated",
    "decorrelated_rule",
    "decorrelation",
    "decorrelation_loss",
    "dense",
    "dense_product",
    "direct_feedback_alignment",
    "ensemble",
    "estimators",
    "feedback_alignment",
    "flatten",
    "fold",
    "follow",
    "forward_gradient",
    "forward_mask",
    "gather",
    "kolen_pollack",
    "make_train",
    "max_pool",
    "metrics",
    "mlp",
    "node_perturbation",
    "plasticity",
    "pull_back",
    "reads_of",
    "recurrent",
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
    "with_feedback",
    "without_feedback",
]
