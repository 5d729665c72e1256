"""Gradient estimators for any `loss_fn(params, *args)`: `jax.value_and_grad` with a leading key."""

from lax_learning.estimators._autodiff import backprop, forward_gradient
from lax_learning.estimators._in_place import in_place_step
from lax_learning.estimators._spsa import Gains, spall_gains, spsa
from lax_learning.estimators._weight_perturbation import weight_perturbation

__all__ = [
    "Gains",
    "backprop",
    "forward_gradient",
    "in_place_step",
    "spall_gains",
    "spsa",
    "weight_perturbation",
]
