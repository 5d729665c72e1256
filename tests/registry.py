"""Every rule and its variants, `RULES[name](model, loss, sigma=0.1) -> Rule`, and every kind of network.

What is added here is held to the whole contract; nothing else in the tests lists rules.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import lax_learning as ll

RULES: dict[str, Callable[..., ll.Rule]] = {
    "backprop": lambda model, loss, sigma=0.1: ll.backprop(model, loss),
    "fa": lambda model, loss, sigma=0.1: ll.feedback_alignment(model, loss),
    "dfa": lambda model, loss, sigma=0.1: ll.direct_feedback_alignment(model, loss),
    "np": partial(ll.node_perturbation, sigma=0.1),
    "np-activity": partial(ll.node_perturbation, sigma=0.1, variant="activity"),
    "np-antithetic": partial(ll.node_perturbation, sigma=0.1, antithetic=True, noise="rademacher"),
    "np-layerwise": partial(ll.node_perturbation, sigma=0.1, layerwise=True, share_noise=True),
    "np-3": partial(ll.node_perturbation, sigma=0.1, num_samples=3),
    "np-batch": partial(ll.node_perturbation, sigma=0.1, batch=True),
    "wp": partial(ll.weight_perturbation, sigma=0.1),
    "wp-central": partial(ll.weight_perturbation, sigma=0.1, difference="central", noise="rademacher"),
    "wp-3": partial(ll.weight_perturbation, sigma=0.1, num_samples=3),
    "spsa": lambda model, loss, sigma=0.1: ll.spsa(model, loss, perturbation=lambda count: sigma),
    "fg": lambda model, loss, sigma=0.1: ll.forward_gradient(model, loss, num_samples=2),
    "fg-activities": lambda model, loss, sigma=0.1: ll.forward_gradient(model, loss, perturb="activities"),
    "usf": lambda model, loss, sigma=0.1: ll.sign_symmetry(model, loss, gain=0.5),
    "frsf": lambda model, loss, sigma=0.1: ll.sign_symmetry(model, loss, magnitude="fixed"),
    "brsf": lambda model, loss, sigma=0.1: ll.sign_symmetry(model, loss, magnitude="redrawn"),
    "kp": lambda model, loss, sigma=0.1: ll.kolen_pollack(
        model, loss, optimizer=optax.sgd(0.1, momentum=0.9)
    ),
    "decorrelated": lambda model, loss, sigma=0.1: ll.decorrelation.rule(
        lambda model: ll.feedback_alignment(model, loss), model, ll.decorrelation.dynamics(0.1)
    ),
}

LEARNING = ("decorrelated", "kp", "spsa")
"""Rules whose state moves."""

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
