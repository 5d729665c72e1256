"""Updates and SNR of the tutorial's rules: its network, its learning rate, its units."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import lax_learning as ll
from benchmarks.cases.case import Case, Sizes
from benchmarks.reference import microlearning as reference
from benchmarks.timing import Ours
from lax_learning import metrics

INPUTS, OUTPUTS = 784, 10
SIGMA, LEARNING_RATE = 0.1, 1e-3


def network_of(sizes: Sizes) -> ll.Network:
    """784-500-10, sigmoid on both layers."""
    widths = (INPUTS, sizes.hidden, OUTPUTS)
    return ll.mlp(widths, activation=jax.nn.sigmoid, output_activation=jax.nn.sigmoid)


class Compared(NamedTuple):
    """A rule of the library and the reference's.

    Fields:
      make: `(network, noise) -> Rule`, in the units of the tutorial; noise is a name or a function.
      reference: name of the reference's rule.
      noise: name of the noise.
    """

    make: Callable[[ll.Network, Any], ll.Rule]
    reference: str
    noise: str = "normal"


def _weight_perturbation(network: ll.Network, noise: Any) -> ll.Rule:
    return ll.weight_perturbation(network, ll.squared_error, sigma=SIGMA, noise=noise)


def _node_perturbation(network: ll.Network, noise: Any) -> ll.Rule:
    return ll.node_perturbation(network, ll.squared_error, sigma=SIGMA, noise=noise, variant="tutorial")


def _backprop(network: ll.Network, noise: Any) -> ll.Rule:
    return ll.backprop(network, ll.squared_error, scale="tutorial")


def _feedback_alignment(network: ll.Network, noise: Any) -> ll.Rule:
    return ll.feedback_alignment(network, ll.squared_error, scale="tutorial")


def _kolen_pollack(network: ll.Network, noise: Any) -> ll.Rule:
    return ll.kolen_pollack(
        network, ll.squared_error, decay=reference.DECAY, decay_bias=True, scale="tutorial"
    )


RULES = {
    "weight perturbation": Compared(_weight_perturbation, "weight_perturbation"),
    "weight perturbation, signs": Compared(_weight_perturbation, "weight_perturbation", "rademacher"),
    "node perturbation": Compared(_node_perturbation, "node_perturbation"),
    "backprop": Compared(_backprop, "backprop"),
    "feedback alignment": Compared(_feedback_alignment, "feedback_alignment"),
    "Kolen-Pollack": Compared(_kolen_pollack, "kolen_pollack"),
}


def examples(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs `[count, 784]` in 0..1, a fifth of them not 0 as in MNIST, and one-hot labels."""
    rng = np.random.default_rng(0)
    x = rng.random((count, INPUTS)) * (rng.random((count, INPUTS)) < 0.2)
    return x.astype(np.float32), np.eye(OUTPUTS, dtype=np.float32)[rng.integers(OUTPUTS, size=count)]


def as_reference(params: Any) -> reference.Weights:
    """Parameters of the library as the reference has them, in float64."""
    hidden, output = (
        np.append(np.asarray(layer["w"]).T, np.asarray(layer["b"])[:, None], axis=1).astype(np.float64)
        for layer in params
    )
    shape = (len(hidden), len(output))
    feedback = np.asarray(params[1]["feedback"]) if "feedback" in params[1] else np.zeros(shape)
    return reference.Weights(hidden, output, feedback.astype(np.float64))


def weights_of(rule: ll.Rule, seeds: int) -> Any:
    """Parameters from N(0, 0.1^2), feedback weights too, by NumPy; with a leading axis for many seeds."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(rule.init, jax.random.key(0))
    leading = () if seeds == 1 else (seeds,)
    return jax.tree.map(
        lambda leaf: jax.numpy.asarray(0.1 * rng.standard_normal((*leading, *leaf.shape), np.float32)), shapes
    )


def update(rule: ll.Rule, key: jax.Array, params: Any, x: Any, y: Any) -> Any:
    """The parameters after one update, and the loss before it."""
    optimizer = optax.sgd(LEARNING_RATE)
    loss, grads = rule.value_and_grad(key, params, x, y)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return optax.apply_updates(params, updates), loss


def snr(network: ll.Network, rule: ll.Rule, key: jax.Array, params: Any, x: Any, y: Any) -> jax.Array:
    """The tutorial's ratio over examples, of the hidden weights and their biases."""
    moments = metrics.example_moments(network, rule, key, params, x, y).layers()[0]
    return metrics.snr(moments, variant="tutorial").total.value


def _ours_update(rule: Compared, sizes: Sizes, seeds: int) -> Ours:
    made = rule.make(network_of(sizes), rule.noise)
    x, y = map(jax.numpy.asarray, examples(sizes.batch_size))

    def one(key: jax.Array, params: Any, x: Any, y: Any) -> tuple[Any, jax.Array]:
        keys = jax.random.split(key, sizes.updates)
        return jax.lax.scan(lambda params, key: update(made, key, params, x, y), params, keys)

    return Ours(one, weights_of(made, seeds), (x, y), seeds, pieces=sizes.updates, on_cpu=1)


def _ours_snr(rule: Compared, sizes: Sizes, seeds: int) -> Ours:
    network = network_of(sizes)
    made = rule.make(network, rule.noise)
    x, y = map(jax.numpy.asarray, examples(sizes.examples))
    return Ours(partial(snr, network, made), weights_of(made, seeds), (x, y), seeds, on_cpu=1)


def _reference_parts(rule: Compared, sizes: Sizes, count: int) -> tuple[Any, ...]:
    """Rule, weights, examples and generator of the reference."""
    params = weights_of(rule.make(network_of(sizes), rule.noise), 1)
    x, y = (each.T.astype(np.float64) for each in examples(count))
    return reference.RULES[rule.reference], as_reference(params), x, y, np.random.default_rng(0)


def _reference_update(rule: Compared, sizes: Sizes) -> Callable[[], object]:
    theirs, weights, x, t, rng = _reference_parts(rule, sizes, sizes.batch_size)

    def call() -> None:
        noise = theirs.draw(rng, weights, x.shape[1], SIGMA)
        reference.add(weights, theirs.update(weights, x, t, noise, SIGMA), LEARNING_RATE)

    return call


def _reference_snr(rule: Compared, sizes: Sizes) -> Callable[[], object]:
    theirs, weights, x, t, rng = _reference_parts(rule, sizes, sizes.examples)
    return lambda: reference.snr(theirs, weights, x, t, lambda i: theirs.draw(rng, weights, 1, SIGMA), SIGMA)


UPDATE_GOALS = {
    "weight perturbation": 3.0, "weight perturbation, signs": 6.0, "node perturbation": 140.0,
    "backprop": 2.2, "feedback alignment": 2.2, "Kolen-Pollack": 2.2,
}  # fmt: skip
SNR_GOALS = {
    "weight perturbation": 3.5, "weight perturbation, signs": 12.0, "node perturbation": 150.0,
    "backprop": 150.0, "feedback alignment": 150.0, "Kolen-Pollack": 150.0,
}  # fmt: skip

CASES = [
    *(
        Case("microlearning", f"update: {name}", goal, goal,
             partial(_ours_update, RULES[name]), partial(_reference_update, RULES[name]))
        for name, goal in UPDATE_GOALS.items()
    ),
    *(
        Case("microlearning", f"SNR: {name}", goal, None,
             partial(_ours_snr, RULES[name]), partial(_reference_snr, RULES[name]))
        for name, goal in SNR_GOALS.items()
    ),
]  # fmt: skip
