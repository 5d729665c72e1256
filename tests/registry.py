"""Every rule and each of its variants, `RULES[name](network, loss) -> Rule`, and every kind of network.

What is added here is held to the whole contract; nothing else in the tests lists rules.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from lax_learning._sites.decorrelation import decorrelated_rule

import lax_learning as ll

Factory = Callable[[ll.Network, ll.Loss], ll.Rule]

RULES: dict[str, Factory] = {
    "backprop": ll.backprop,
    "backprop-tutorial": partial(ll.backprop, scale="tutorial"),
    "wp": partial(ll.weight_perturbation, sigma=0.1),
    "wp-central": partial(ll.weight_perturbation, sigma=0.1, difference="central"),
    "wp-rademacher": partial(ll.weight_perturbation, sigma=0.1, noise="rademacher"),
    "wp-3": partial(ll.weight_perturbation, sigma=0.1, num_samples=3),
    "np": partial(ll.node_perturbation, sigma=0.1),
    "np-tutorial": partial(ll.node_perturbation, sigma=0.1, variant="tutorial"),
    "np-activity": partial(ll.node_perturbation, sigma=0.1, variant="activity"),
    "np-antithetic": partial(ll.node_perturbation, sigma=0.1, antithetic=True),
    "np-layerwise": partial(ll.node_perturbation, sigma=0.1, layerwise=True),
    "np-shared": partial(ll.node_perturbation, sigma=0.1, share_noise=True),
    "np-rademacher": partial(ll.node_perturbation, sigma=0.1, noise="rademacher"),
    "np-3": partial(ll.node_perturbation, sigma=0.1, num_samples=3),
    "fg-weights": ll.forward_gradient,
    "fg-weights-3": partial(ll.forward_gradient, num_samples=3),
    "fg-activities": partial(ll.forward_gradient, perturb="activities"),
    "fa": ll.feedback_alignment,
    "fa-tutorial": partial(ll.feedback_alignment, scale="tutorial"),
    "dfa": ll.direct_feedback_alignment,
    "dfa-tutorial": partial(ll.direct_feedback_alignment, scale="tutorial"),
    "usf": ll.sign_symmetry,
    "usf-tutorial": partial(ll.sign_symmetry, scale="tutorial"),
    "frsf": partial(ll.sign_symmetry, magnitude="fixed"),
    "brsf": partial(ll.sign_symmetry, magnitude="redrawn"),
    "kp": ll.kolen_pollack,
    "kp-tutorial": partial(ll.kolen_pollack, decay_bias=True, scale="tutorial"),
}

RULES_WITH_SCALE: dict[str, Callable[..., ll.Rule]] = {
    "backprop": ll.backprop,
    "fa": ll.feedback_alignment,
    "dfa": ll.direct_feedback_alignment,
    "usf": ll.sign_symmetry,
    "frsf": partial(ll.sign_symmetry, magnitude="fixed"),
    "brsf": partial(ll.sign_symmetry, magnitude="redrawn"),
    "kp": partial(ll.kolen_pollack, decay=0.0),
}


def flat_product(w: Any, x: Any) -> Any:
    """Flattens before the product: activations keep their shape, as noise on activities needs."""
    return ll.dense_product(w, ll.flatten(x))


def convolutional(w_init: Any, dtype: Any) -> ll.Network:
    layer = ll.convolution(1, 2, 2, jnp.tanh, stride=2, w_init=w_init, dtype=dtype)
    read_out = ll.dense(8, 2, w_init=w_init, dtype=dtype)._replace(linear=flat_product)
    return ll.Network((layer, read_out), (4, 4, 1))


# weights from a uniform distribution: compiling normal draws takes longer than all the rest
UNIFORM = jax.nn.initializers.uniform(1.0)

NETWORKS: dict[str, Callable[[Any], ll.Network]] = {
    "dense": lambda dtype: ll.mlp((3, 4, 2), activation=jnp.tanh, w_init=UNIFORM, dtype=dtype),
    "convolutional": partial(convolutional, UNIFORM),
    "recurrent": lambda dtype: ll.rnn(
        (3, 4, 2), steps=3, w_init=UNIFORM, recurrent_init=UNIFORM, dtype=dtype
    ),
}
"""Networks of two layers and two outputs, by kind: `NETWORKS[kind](dtype)`."""

ModelFactory = Callable[..., Any]

MODEL_RULES: dict[str, ModelFactory] = {
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
    "decorrelated": lambda model, loss, sigma=0.1: decorrelated_rule(
        lambda model: ll.feedback_alignment(model, loss), model, ll.decorrelation(0.1)
    ),
}
"""Every rule on a `Model`, `MODEL_RULES[name](model, loss, sigma=0.1)`, and its variants."""


def as_model(network: ll.Network) -> ll.Model:
    """The network as any function of its weights."""
    return ll.Model(network.apply, network.init)


def on_model(factory: ModelFactory) -> ModelFactory:
    """The stateless rule of a `Model`, on a network, with the contract of the network's own rules."""

    def make(network: ll.Network, loss: ll.Loss, **options: Any) -> ll.Rule:
        rule = factory(as_model(network), loss, **options)

        def value_and_grad(key: Any, params: Any, x: Any, y: Any) -> Any:
            return rule.value_and_grad(key, params, (), x, y)[:2]

        return ll.Rule(network.init, value_and_grad)

    return make


OPTIONS = ("-3", "-central", "-rademacher", "-shared", "-antithetic", "-tutorial")
"""How variants end that do not see the network: each would cost a compilation for each kind."""

ON_NETWORKS: list[tuple[str, str]] = [
    (kind, name)
    for kind in NETWORKS
    for name in RULES
    if kind == "dense" or not name.endswith(OPTIONS) or name == "np-tutorial"
]
"""What the contract is asked of: every rule on every kind of network, in all variants on the dense one."""
