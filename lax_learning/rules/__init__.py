"""Credit assignment rules on `(network, loss)` or `(model, loss)`, interchangeable with each other."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from lax_learning._checks import describe
from lax_learning._sites.rules.backprop import backprop as _backprop
from lax_learning._sites.rules.direct_feedback_alignment import direct_feedback_alignment as _direct
from lax_learning._sites.rules.feedback_alignment import feedback_alignment as _feedback
from lax_learning._sites.rules.forward_gradient import forward_gradient as _forward
from lax_learning._sites.rules.kolen_pollack import kolen_pollack as _kolen_pollack
from lax_learning._sites.rules.node_perturbation import node_perturbation as _node
from lax_learning._sites.rules.sign_symmetry import sign_symmetry as _sign_symmetry
from lax_learning._sites.rules.spsa import spsa
from lax_learning._sites.rules.weight_perturbation import weight_perturbation as _weight
from lax_learning.models import Model
from lax_learning.networks import Network
from lax_learning.rules._delta import check_loss
from lax_learning.rules.backprop import backprop as _network_backprop
from lax_learning.rules.direct_feedback_alignment import direct_feedback_alignment as _network_direct
from lax_learning.rules.feedback_alignment import feedback_alignment as _network_feedback
from lax_learning.rules.forward_gradient import forward_gradient as _network_forward
from lax_learning.rules.kolen_pollack import kolen_pollack as _network_kolen_pollack
from lax_learning.rules.node_perturbation import node_perturbation as _network_node
from lax_learning.rules.sign_symmetry import sign_symmetry as _network_sign_symmetry
from lax_learning.rules.weight_perturbation import weight_perturbation as _network_weight

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


def _either(on_network: Callable[..., Any], on_model: Callable[..., Any]) -> Callable[..., Any]:
    """The rule on a `Network`, or on a `Model`, for as long as networks are not models themselves."""

    @functools.wraps(on_network)
    def make(network: Any = None, loss: Any = None, *, model: Any = None, **options: Any) -> Any:
        if network is not None and model is not None:
            raise TypeError(f"model: expected a Network or a Model, not both, got {describe(model)}")
        network = model if network is None else network
        if not isinstance(network, Model | Network):
            expected = "a Network, such as mlp((784, 100, 10)), or a Model"
            raise TypeError(f"network: expected {expected}, got {describe(network)}")
        check_loss(loss)
        make_rule, kind = (on_model, "Model") if isinstance(network, Model) else (on_network, "Network")
        for name in options:
            if name not in inspect.signature(make_rule).parameters:
                raise TypeError(
                    f"{name}: expected no such option for a {kind}, got {describe(options[name])}"
                )
        return make_rule(network, loss, **options)

    return make


backprop = _either(_network_backprop, _backprop)
direct_feedback_alignment = _either(_network_direct, _direct)
feedback_alignment = _either(_network_feedback, _feedback)
forward_gradient = _either(_network_forward, _forward)
kolen_pollack = _either(_network_kolen_pollack, _kolen_pollack)
node_perturbation = _either(_network_node, _node)
sign_symmetry = _either(_network_sign_symmetry, _sign_symmetry)
weight_perturbation = _either(_network_weight, _weight)
