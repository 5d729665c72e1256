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
from experiments.microlearning import notebook
from lax_learning import metrics

INPUTS, OUTPUTS = 784, 10
SIGMA, LEARNING_RATE = 0.1, 1e-3


ACTIVATIONS = (jax.nn.sigmoid,) * 2


def network_of(sizes: Sizes) -> ll.Model:
    """784-500-10, sigmoid on both layers."""
    hidden, output = ACTIVATIONS
    return ll.mlp((INPUTS, sizes.hidden, OUTPUTS), activation=hidden, output_activation=output)


def _example_moments(model: ll.Model, rule: ll.Rule, noise: Any) -> Callable[..., metrics.Moments]:
    return partial(metrics.example_moments, model, rule)


class Compared(NamedTuple):
    """A rule of the library and the reference's.

    Fields:
      make: `(model, noise) -> Rule`, in the units of the tutorial; noise is a name or a function.
      reference: name of the reference's rule.
      noise: name of the noise.
      moments: `(model, rule, noise) -> moments`, a function `(key, params, state, x, y) -> Moments` over
        examples.
    """

    make: Callable[[ll.Model, Any], ll.Rule]
    reference: str
    noise: str = "normal"
    moments: Callable[..., Callable[..., metrics.Moments]] = _example_moments


def _weight_perturbation(model: ll.Model, noise: Any) -> ll.Rule:
    return ll.weight_perturbation(model, ll.squared_error, sigma=SIGMA, noise=noise)


def _node_perturbation(model: ll.Model, noise: Any) -> ll.Rule:
    return notebook.node_perturbation(ACTIVATIONS, ll.squared_error, sigma=SIGMA, noise=noise)


def _node_moments(model: ll.Model, rule: ll.Rule, noise: Any) -> Callable[..., metrics.Moments]:
    factors = notebook.node_factors(ACTIVATIONS, ll.squared_error, sigma=SIGMA, noise=noise)
    moments = notebook.node_moments(factors)
    return lambda key, params, state, x, y: moments(key, params, x, y)


def _backprop(model: ll.Model, noise: Any) -> ll.Rule:
    return notebook.in_notebook_units(ll.backprop(model, ll.squared_error))


def _feedback_alignment(model: ll.Model, noise: Any) -> ll.Rule:
    return notebook.in_notebook_units(ll.feedback_alignment(model, ll.squared_error))


def _kolen_pollack(model: ll.Model, noise: Any) -> ll.Rule:
    return notebook.kolen_pollack(
        model, ll.squared_error, optimizer=optax.sgd(LEARNING_RATE), decay=reference.DECAY
    )


RULES = {
    "weight perturbation": Compared(_weight_perturbation, "weight_perturbation"),
    "weight perturbation, signs": Compared(_weight_perturbation, "weight_perturbation", "rademacher"),
    "node perturbation": Compared(_node_perturbation, "node_perturbation", moments=_node_moments),
    "backprop": Compared(_backprop, "backprop"),
    "feedback alignment": Compared(_feedback_alignment, "feedback_alignment"),
    "Kolen-Pollack": Compared(_kolen_pollack, "kolen_pollack"),
}


def examples(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs `[count, 784]` in 0..1, a fifth of them not 0 as in MNIST, and one-hot labels."""
    rng = np.random.default_rng(0)
    x = rng.random((count, INPUTS)) * (rng.random((count, INPUTS)) < 0.2)
    return x.astype(np.float32), np.eye(OUTPUTS, dtype=np.float32)[rng.integers(OUTPUTS, size=count)]


class Weights(NamedTuple):
    """Parameters of the model, and the state of the rule."""

    params: Any
    state: Any


def as_reference(weights: Weights) -> reference.Weights:
    """Weights of the library as the reference has them, in float64."""
    hidden, output = (
        np.append(np.asarray(layer["w"]).T, np.asarray(layer["b"])[:, None], axis=1).astype(np.float64)
        for layer in weights.params
    )
    held = jax.tree.leaves(weights.state)
    feedback = np.asarray(held[0]) if held else np.zeros((len(hidden), len(output)))
    return reference.Weights(hidden, output, feedback.astype(np.float64))


def weights_of(model: ll.Model, rule: ll.Rule, seeds: int) -> Weights:
    """Weights from N(0, 0.1^2), feedback too, by NumPy; with a leading axis for many seeds."""
    rng = np.random.default_rng(1)
    key = jax.random.key(0)
    x = jax.ShapeDtypeStruct((1, INPUTS), np.float32)
    params = jax.eval_shape(model.init, key)
    shapes = Weights(params, jax.eval_shape(rule.init, key, params, x))
    leading = () if seeds == 1 else (seeds,)
    return jax.tree.map(
        lambda leaf: jax.numpy.asarray(0.1 * rng.standard_normal((*leading, *leaf.shape), np.float32)), shapes
    )


def update(rule: ll.Rule, key: jax.Array, weights: Weights, x: Any, y: Any) -> tuple[Weights, jax.Array]:
    """The weights after one update, and the loss before it."""
    optimizer = optax.sgd(LEARNING_RATE)
    params, state = weights
    loss, grads, state = rule.value_and_grad(key, params, state, x, y)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return Weights(optax.apply_updates(params, updates), state), loss


def snr(moments: Callable[..., metrics.Moments], key: jax.Array, weights: Weights, x: Any, y: Any) -> Any:
    """The tutorial's ratio over examples, of the hidden weights and their biases."""
    of_hidden = moments(key, *weights, x, y).parts(depth=1)["0"]
    return metrics.snr(of_hidden, variant="tutorial").total.value


def _ours_update(rule: Compared, sizes: Sizes, seeds: int) -> Ours:
    model = network_of(sizes)
    made = rule.make(model, rule.noise)
    x, y = map(jax.numpy.asarray, examples(sizes.batch_size))

    def one(key: jax.Array, weights: Weights, x: Any, y: Any) -> tuple[Weights, jax.Array]:
        keys = jax.random.split(key, sizes.updates)
        return jax.lax.scan(lambda weights, key: update(made, key, weights, x, y), weights, keys)

    return Ours(one, weights_of(model, made, seeds), (x, y), seeds, pieces=sizes.updates, on_cpu=1)


def _ours_snr(rule: Compared, sizes: Sizes, seeds: int) -> Ours:
    model = network_of(sizes)
    made = rule.make(model, rule.noise)
    moments = rule.moments(model, made, rule.noise)
    x, y = map(jax.numpy.asarray, examples(sizes.examples))
    return Ours(partial(snr, moments), weights_of(model, made, seeds), (x, y), seeds, on_cpu=1)


def _reference_parts(rule: Compared, sizes: Sizes, count: int) -> tuple[Any, ...]:
    """Rule, weights, examples and generator of the reference."""
    model = network_of(sizes)
    weights = weights_of(model, rule.make(model, rule.noise), 1)
    x, y = (each.T.astype(np.float64) for each in examples(count))
    return reference.RULES[rule.reference], as_reference(weights), x, y, np.random.default_rng(0)


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
