"""Rules for any model, one file per paper."""

from lax_learning.rules._backprop import backprop
from lax_learning.rules._direct_feedback_alignment import direct_feedback_alignment
from lax_learning.rules._direct_kolen_pollack import direct_kolen_pollack
from lax_learning.rules._direct_random_target_projection import direct_random_target_projection
from lax_learning.rules._feedback_alignment import feedback_alignment
from lax_learning.rules._forward_direct_feedback import forward_direct_feedback
from lax_learning.rules._forward_gradient import forward_gradient
from lax_learning.rules._guided_gradient import guided_gradient
from lax_learning.rules._kolen_pollack import kolen_pollack
from lax_learning.rules._local_errors import local_errors
from lax_learning.rules._local_losses import local_losses
from lax_learning.rules._node_perturbation import node_perturbation
from lax_learning.rules._pepita import pepita
from lax_learning.rules._sign_symmetry import sign_symmetry
from lax_learning.rules._spsa import spsa
from lax_learning.rules._weight_mirror import weight_mirror
from lax_learning.rules._weight_perturbation import weight_perturbation

__all__ = [
    "backprop",
    "direct_feedback_alignment",
    "direct_kolen_pollack",
    "direct_random_target_projection",
    "feedback_alignment",
    "forward_direct_feedback",
    "forward_gradient",
    "guided_gradient",
    "kolen_pollack",
    "local_errors",
    "local_losses",
    "node_perturbation",
    "pepita",
    "sign_symmetry",
    "spsa",
    "weight_mirror",
    "weight_perturbation",
]
