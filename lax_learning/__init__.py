"""Credit assignment without backprop, as pure JAX functions."""

from lax_learning import data, estimators, metrics, plasticity
from lax_learning.birth_death import BirthDeathState, Draws, Events, birth_death, uniform_draws
from lax_learning.ensemble import ensemble
from lax_learning.feedback import clip_by_forward_norm, forward_mask, with_feedback, without_feedback
from lax_learning.follow import follow
from lax_learning.losses import accuracy, balanced_accuracy, softmax_cross_entropy, squared_error
from lax_learning.networks import Layer, Network, dense, dense_product, mlp
from lax_learning.rules import (
    backprop,
    direct_feedback_alignment,
    feedback_alignment,
    forward_gradient,
    kolen_pollack,
    node_perturbation,
    sign_symmetry,
    weight_perturbation,
)
from lax_learning.taps import pull_back
from lax_learning.training import History, Train, TrainState, make_train
from lax_learning.types import Dynamics, Estimator, Loss, Rule, Signals

__version__ = "0.1.0"

__all__ = [
    "BirthDeathState",
    "Draws",
    "Dynamics",
    "Estimator",
    "Events",
    "History",
    "Layer",
    "Loss",
    "Network",
    "Rule",
    "Signals",
    "Train",
    "TrainState",
    "accuracy",
    "backprop",
    "balanced_accuracy",
    "birth_death",
    "clip_by_forward_norm",
    "data",
    "dense",
    "dense_product",
    "direct_feedback_alignment",
    "ensemble",
    "estimators",
    "feedback_alignment",
    "follow",
    "forward_gradient",
    "forward_mask",
    "kolen_pollack",
    "make_train",
    "metrics",
    "mlp",
    "node_perturbation",
    "plasticity",
    "pull_back",
    "sign_symmetry",
    "softmax_cross_entropy",
    "squared_error",
    "uniform_draws",
    "weight_perturbation",
    "with_feedback",
    "without_feedback",
]
