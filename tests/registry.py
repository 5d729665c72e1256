"""Every rule of the registry with its hyper-parameters, rules with more options on, and kinds of network.

All of them are held to the whole contract; nothing else in the tests lists rules.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import lax_learning as ll
from experiments import registry


def targets_of(y: Any) -> Any:
    """Targets in the structure of the output of the contract's model of trees."""
    return {"left": y["target"], "right": y["weight"]} if isinstance(y, dict) else y


HYPER = {
    "sigma": 0.1, "gain": 0.5, "optimizer": optax.sgd(0.1, momentum=0.9), "targets": targets_of
}  # fmt: skip

MORE: dict[str, Callable[..., ll.Rule]] = {
    "node_perturbation_3": partial(ll.node_perturbation, num_samples=3),
    "node_perturbation_signs": partial(ll.node_perturbation, antithetic=True, noise="rademacher"),
    "node_perturbation_shared": partial(ll.node_perturbation, layerwise=True, share_noise=True),
    "weight_perturbation_3": partial(ll.weight_perturbation, num_samples=3),
    "weight_perturbation_central_signs": partial(
        ll.weight_perturbation, difference="central", noise="rademacher"
    ),
    "forward_gradient_2": partial(ll.forward_gradient, num_samples=2),
}


def _made(factory: Callable[..., ll.Rule], model: ll.Model, loss: Any, **options: Any) -> ll.Rule:
    known = inspect.signature(factory).parameters
    return factory(model, loss, **{name: value for name, value in options.items() if name in known})


def _all(factories: dict[str, Any]) -> dict[str, Callable[..., ll.Rule]]:
    return {name: partial(_made, registry.rule_of(of, **HYPER)) for name, of in factories.items()}


RULES = _all({**registry.RULES, **MORE})
"""`RULES[name](model, loss, **options) -> Rule`, with the options that the rule has."""

ONLINE = _all({
    **registry.ONLINE,
    "rflo_symmetric": partial(ll.online.rflo, feedback_init=None),
    "eprop_symmetric": partial(ll.online.eprop, feedback_init=None),
})  # fmt: skip
"""The same for rules of an `ll.online.Recurrent`."""

LEARNING = (
    "decorrelated_feedback_alignment", "direct_kolen_pollack", "forward_direct_feedback", "kolen_pollack",
    "local_errors", "spsa", "weight_mirror",
)  # fmt: skip
"""Rules whose state moves."""

AT_REST = ("forward_direct_feedback",)
"""Rules whose hidden layers are at rest at first, as their feedback starts from zeros."""
# Compiling normal draws takes longer than all the rest.
UNIFORM = jax.nn.initializers.uniform(1.0)

NETWORKS: dict[str, Callable[[Any], ll.Model]] = {
    "dense": lambda dtype: ll.mlp((3, 4, 2), activation=jnp.tanh, w_init=UNIFORM, dtype=dtype),
    "convolutional": lambda dtype: ll.convnet(
        (4, 4, 1), (2,), (2,), kernel=2, stride=2, activation=jnp.tanh, w_init=UNIFORM, dtype=dtype
    ),
    "recurrent": lambda dtype: ll.rnn((3, 4, 2), w_init=UNIFORM, recurrent_init=UNIFORM, dtype=dtype),
}
"""Models of two layers and two outputs, `NETWORKS[kind](dtype)`, of inputs `[batch, *INPUT_SHAPES[kind]]`."""

INPUT_SHAPES = {"dense": (3,), "convolutional": (4, 4, 1), "recurrent": (3, 3)}
