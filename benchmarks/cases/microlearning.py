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
from experiments.registry import rule_of
from lax_learning import metrics

INPUTS, OUTPUTS = 784, 10
SIGMA, LEARNING_RATE = 0.1, 1e-3
ACTIVATIONS = (jax.nn.sigmoid,) * 2


class Compared(NamedTuple):
    """Rule of the library and of the reference."""

    name: str  # in the registry and in the reference
    goal: float  # intended speed of an update relative to the reference
    snr_goal: float  # the same for the signal to noise
    noise: Any = "normal"  # a name or a function

    def make(self, model: ll.Model) -> ll.Rule:
        """Returns the rule in the units of the tutorial."""
        if self.name == "node_perturbation":
            return notebook.node_perturbation(ACTIVATIONS, ll.squared_error, sigma=SIGMA, noise=self.noise)
        if self.name == "kolen_pollack":
            optimizer = optax.sgd(LEARNING_RATE)
            return notebook.kolen_pollack(model, ll.squared_error, optimizer=optimizer, decay=reference.DECAY)
        rule = rule_of(self.name, sigma=SIGMA, noise=self.noise)(model, ll.squared_error)
        return rule if self.name == "weight_perturbation" else notebook.in_notebook_units(rule)

    def snr(self, model: ll.Model) -> Callable[..., jax.Array]:
        """Returns `(key, weights, x, y) -> SNR`, the tutorial's, of hidden weights and biases."""
        if self.name == "node_perturbation":
            options: dict[str, Any] = {"sigma": SIGMA, "noise": self.noise}
            factors = notebook.node_factors(ACTIVATIONS, ll.squared_error, **options)
            of_params = notebook.node_moments(factors)
            moments = lambda key, params, state, x, y: of_params(key, params, x, y)  # noqa: E731
        else:
            moments = partial(metrics.example_moments, model, self.make(model))

        def snr(key: jax.Array, weights: "Weights", x: Any, y: Any) -> jax.Array:
            of_hidden = moments(key, *weights, x, y).parts(depth=1)["0"]
            return metrics.snr(of_hidden, variant="tutorial").total.value

        return snr

    def our_snr(self, sizes: Sizes, seeds: int) -> Ours:
        """Returns the signal to noise, as a program of the library."""
        model = network_of(sizes)
        x, y = map(jax.numpy.asarray, examples(sizes.examples))
        return Ours(self.snr(model), weights_of(model, self.make(model), seeds), (x, y), seeds, on_cpu=1)

    def _parts(self, sizes: Sizes, count: int) -> tuple[Any, ...]:
        """Returns weights of the reference, images and labels, and a function that draws noise."""
        model = network_of(sizes)
        weights = as_reference(weights_of(model, self.make(model), 1))
        x, t = (each.T.astype(np.float64) for each in examples(count))
        draw = partial(reference.draw, self.name, np.random.default_rng(0), weights, sigma=SIGMA)
        return weights, x, t, draw

    def reference_update(self, sizes: Sizes) -> Callable[[], object]:
        """Returns an update by the reference."""
        weights, x, t, draw = self._parts(sizes, sizes.batch_size)

        def call() -> None:
            update = reference.RULES[self.name](weights, x, t, draw(batch_size=x.shape[1]), SIGMA)
            reference.add(weights, update, LEARNING_RATE)

        return call

    def reference_snr(self, sizes: Sizes) -> Callable[[], object]:
        """Returns the signal to noise by the reference."""
        weights, x, t, draw = self._parts(sizes, sizes.examples)
        return lambda: reference.snr(self.name, weights, x, t, lambda i: draw(batch_size=1), SIGMA)


RULES = {
    "weight perturbation": Compared("weight_perturbation", 3.0, 3.5),
    "weight perturbation, signs": Compared("weight_perturbation", 6.0, 12.0, "rademacher"),
    "node perturbation": Compared("node_perturbation", 140.0, 150.0),
    "backprop": Compared("backprop", 2.2, 150.0),
    "feedback alignment": Compared("feedback_alignment", 2.2, 150.0),
    "Kolen-Pollack": Compared("kolen_pollack", 2.2, 150.0),
}


def network_of(sizes: Sizes) -> ll.Model:
    """Returns the network 784-500-10 with sigmoids on both layers."""
    hidden, output = ACTIVATIONS
    return ll.mlp((INPUTS, sizes.hidden, OUTPUTS), activation=hidden, output_activation=output)


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


_case = partial(Case, "microlearning")
CASES = [
    *(
        _case(f"update: {name}", rule.goal, rule.goal, partial(training, rule.make), rule.reference_update)
        for name, rule in RULES.items()
    ),
    *(
        _case(f"SNR: {name}", rule.snr_goal, None, rule.our_snr, rule.reference_snr)
        for name, rule in RULES.items()
    ),
]
