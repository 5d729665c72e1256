"""Credit assignment without backprop, as pure JAX functions.

Bad input is a TypeError or ValueError that names the argument, what was expected and what came, when a
function is called or traced. Docstrings say under Raises only what the arguments do not say themselves.
"""

from lax_learning import birth_death, data, decorrelation, estimators, metrics, online, plasticity, symbolic
from lax_learning._ensemble import ensemble
from lax_learning._grid import grid
from lax_learning._placement import gather, replicate
from lax_learning._sites.table import sites
from lax_learning._sites.tapped import tapped
from lax_learning.losses import accuracy, balanced_accuracy, softmax_cross_entropy, squared_error
from lax_learning.models import Model
from lax_learning.networks import convnet, mlp, rnn
from lax_learning.rules import (
    backprop,
    direct_feedback_alignment,
    direct_kolen_pollack,
    direct_random_target_projection,
    feedback_alignment,
    forward_direct_feedback,
    forward_gradient,
    guided_gradient,
    kolen_pollack,
    local_losses,
    node_perturbation,
    pepita,
    sign_symmetry,
    spsa,
    weight_mirror,
    weight_perturbation,
)
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
    "backprop",
    "balanced_accuracy",
    "birth_death",
    "convnet",
    "data",
    "decorrelation",
    "direct_feedback_alignment",
    "direct_kolen_pollack",
    "direct_random_target_projection",
    "ensemble",
    "estimators",
    "feedback_alignment",
    "forward_direct_feedback",
    "forward_gradient",
    "gather",
    "grid",
    "guided_gradient",
    "kolen_pollack",
    "local_losses",
    "make_train",
    "metrics",
    "mlp",
    "node_perturbation",
    "online",
    "pepita",
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
    "weight_mirror",
    "weight_perturbation",
]
