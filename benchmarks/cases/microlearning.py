"""Updates and SNR of the tutorial's rules, with its network, learning rate and units."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import lax_learning as ll
from benchmarks.cases.case import Case, Sizes, images
from benchmarks.reference import microlearning as reference
from benchmarks.timing import Ours
from experiments.microlearning import notebook
from lax_learning import metrics

INPUTS, OUTPUTS = 784, 10
SIGMA, LEARNING_RATE = 0.1, 1e-3
ACTIVATIONS = (jax.nn.sigmoid,) * 2


def network_of(sizes: Sizes) -> ll.Model:
    """Returns the network 784-500-10 with sigmoids on both layers."""
    hidden, output = ACTIVATIONS
    return ll.mlp((INPUTS, sizes.hidden, OUTPUTS), activation=hidden, output_activation=output)


def _example_moments(model: ll.Model, rule: ll.Rule, noise: Any) -> Callable[..., metrics.Moments]:
    return partial(metrics.example_moments, model, rule)


class Compared(NamedTuple):
    """Rule of the library, and its counterpart in the reference.

    Fields:
      make: `(model, noise) -> Rule`, in the units of the tutorial; noise is a name or a function.
      reference: name of the rule in the reference.
      noise: name of the noise.
      moments: `(model, rule, noise) -> moments`, where `moments(key, params, state, x, y)` are over examples.
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


def _in_units(make: Callable[[ll.Model, ll.Loss], ll.Rule]) -> Callable[[ll.Model, Any], ll.Rule]:
    return lambda model, noise: notebook.in_notebook_units(make(model, ll.squared_error))


def _kolen_pollack(model: ll.Model, noise: Any) -> ll.Rule:
    return notebook.kolen_pollack(
        model, ll.squared_error, optimizer=optax.sgd(LEARNING_RATE), decay=reference.DECAY
    )


RULES = {
    "weight perturbation": Compared(_weight_perturbation, "weight_perturbation"),
    "weight perturbation, signs": Compared(_weight_perturbation, "weight_perturbation", "rademacher"),
    "node perturbation": Compared(_node_perturbation, "node_perturbation", moments=_node_moments),
    "backprop": Compared(_in_units(ll.backprop), "backprop"),
    "feedback alignment": Compared(_in_units(ll.feedback_alignment), "feedback_alignment"),
    "Kolen-Pollack": Compared(_kolen_pollack, "kolen_pollack"),
}


def examples(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws images `[count, 784]`, and one-hot labels."""
    x, labels = images(count)
    return x, np.eye(OUTPUTS, dtype=np.float32)[labels]


class Weights(NamedTuple):
    """Params of the model, and state of the rule."""

    params: Any
    state: Any


def as_reference(weights: Weights) -> reference.Weights:
    """Converts weights of the library to those of the reference, in float64."""
    hidden, output = (
        np.append(np.asarray(layer["w"]).T, np.asarray(layer["b"])[:, None], axis=1).astype(np.float64)
        for layer in weights.params
    )
    held = jax.tree.leaves(weights.state)
    feedback = np.asarray(held[0]) if held else np.zeros((len(hidden), len(output)))
    return reference.Weights(hidden, output, feedback.astype(np.float64))


def weights_of(model: ll.Model, rule: ll.Rule, seeds: int) -> Weights:
    """Draws weights and feedback from N(0, 0.1^2); with several seeds, they have a leading axis."""
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
    """Returns the weights after one update, and the loss before it."""
    optimizer = optax.sgd(LEARNING_RATE)
    params, state = weights
    loss, grads, state = rule.value_and_grad(key, params, state, x, y)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return Weights(optax.apply_updates(params, updates), state), loss


def snr(moments: Callable[..., metrics.Moments], key: jax.Array, weights: Weights, x: Any, y: Any) -> Any:
    """Returns the tutorial's signal to noise over examples, for hidden weights and biases."""
    of_hidden = moments(key, *weights, x, y).parts(depth=1)["0"]
    return metrics.snr(of_hidden, variant="tutorial").total.value


def batch(sizes: Sizes) -> tuple[jax.Array, ...]:
    """Returns images and labels of an update."""
    return tuple(map(jax.numpy.asarray, examples(sizes.batch_size)))


def training(make: Callable[[ll.Model], ll.Rule], sizes: Sizes, seeds: int, draws: int = 1) -> Ours:
    """Returns updates of a rule in a scan; with several draws, one update in which each draw is a piece."""
    model, updates = network_of(sizes), sizes.updates if draws == 1 else 1
    rule = make(model)

    def one(key: jax.Array, weights: Weights, x: Any, y: Any) -> tuple[Weights, jax.Array]:
        keys = jax.random.split(key, updates)
        return jax.lax.scan(lambda weights, key: update(rule, key, weights, x, y), weights, keys)

    return Ours(one, weights_of(model, rule, seeds), batch(sizes), seeds, pieces=updates * draws, on_cpu=1)


def _ours_update(rule: Compared, sizes: Sizes, seeds: int) -> Ours:
    return training(lambda model: rule.make(model, rule.noise), sizes, seeds)


def _ours_snr(rule: Compared, sizes: Sizes, seeds: int) -> Ours:
    model = network_of(sizes)
    made = rule.make(model, rule.noise)
    moments = rule.moments(model, made, rule.noise)
    x, y = map(jax.numpy.asarray, examples(sizes.examples))
    return Ours(partial(snr, moments), weights_of(model, made, seeds), (x, y), seeds, on_cpu=1)


def _reference_parts(rule: Compared, sizes: Sizes, count: int) -> tuple[Any, ...]:
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
