"""Rules on any model, one paper a file."""

from lax_learning.rules.backprop import backprop
from lax_learning.rules.direct_feedback_alignment import direct_feedback_alignment
from lax_learning.rules.feedback_alignment import feedback_alignment
from lax_learning.rules.forward_gradient import forward_gradient
from lax_learning.rules.kolen_pollack import kolen_pollack
from lax_learning.rules.node_perturbation import node_perturbation
from lax_learning.rules.sign_symmetry import sign_symmetry
from lax_learning.rules.spsa import spsa
from lax_learning.rules.weight_perturbation import weight_perturbation

__all__ = [
    "backprop",
    "direct_feedback_alignment",
    "feedback_alignment",
    "forward_gradient",
    "kolen_pollack",
    "node_perturbation",
    "sign_symmetry",
    "spsa",
    "weight_perturbation",
]
