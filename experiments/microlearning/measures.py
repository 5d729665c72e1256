"""Measures of the microlearning experiment: accuracy, cosine, SNR, bias, variance and matched steps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import lax_learning as ll
from experiments.microlearning.config import Config
from experiments.microlearning.networks import Problem, make_problem
from experiments.microlearning.rules import make_rule, moments_over_examples
from lax_learning.metrics import Moments, bias_variance, by_path, cosine_similarity, draw_moments, snr

RATED_IMAGES = 1000
RATES = tuple(2.0 ** (i / 2) for i in range(-40, 13))
"""Candidates for the matched learning rate."""

Metrics = dict[str, jax.Array]


def of_layers(metric: Callable[..., jax.Array], *gradients: Any) -> jax.Array:
    """Computes a metric of the gradients of every layer and, as the last entry, of all layers together."""
    return jnp.stack([*by_path(metric, *gradients, depth=1).values(), metric(*gradients)])


def of_moments(metric: Callable[[Moments], jax.Array], moments: Moments) -> jax.Array:
    """Computes a metric of the moments of every layer and, as the last entry, of all layers together."""
    return jnp.stack([metric(each) for each in (*moments.parts(depth=1).values(), moments)])


def evaluate(
    problem: Problem, rule: ll.Rule, key: jax.Array, params: Any, state: Any, data: ll.data.Splits
) -> Metrics:
    """Measures accuracy, loss, and the cosine to backprop's update on test images."""
    x, y = data.test
    model = rule.model_at(problem.model, state)
    exact, output = ll.backprop(model, problem.loss), model.apply(params, x)
    _, grads, _ = rule.value_and_grad(key, params, state, x, y)
    _, reference, _ = exact.value_and_grad(key, params, (), x, y)
    return {
        "test_accuracy": problem.accuracy(output, y),
        "test_loss": jnp.mean(problem.loss(output, jnp.asarray(y))),
        "cosine": of_layers(cosine_similarity, grads, reference),
    }


def measure_noise(
    name: str, config: Config, optimizer: optax.GradientTransformation,
    key: jax.Array, params: Any, state: Any, data: ll.data.Splits,
) -> Metrics:  # fmt: skip
    """Measures SNR over test images, and bias and variance over draws on one training batch."""
    example_key, draw_key = jax.random.split(key)
    images = (a[: config.snr_images] for a in data.test)
    examples = moments_over_examples(name, config, optimizer, example_key, params, state, *images)
    x, y = (a[: config.batch_size] for a in data.train)
    exact = ll.backprop(*make_problem(config)[:2])
    _, reference, _ = exact.value_and_grad(key, params, (), x, y)
    rule = make_rule(name, config, optimizer, in_gradient_units=True)
    draws = draw_moments(rule, draw_key, params, state, x, y, reference, config.draws)
    return {
        "snr": of_moments(lambda m: snr(m).total.value, examples),
        "snr_tutorial": of_moments(lambda m: snr(m, variant="tutorial").total.value, examples),
        "relative_bias": of_moments(lambda m: bias_variance(m).relative_bias.value, draws),
        "relative_variance": of_moments(lambda m: bias_variance(m).relative_variance.value, draws),
    }


def one_step_losses(
    config: Config, rule: ll.Rule, key: jax.Array, params: Any, state: Any, data: ll.data.Splits
) -> jax.Array:
    """Computes the validation loss after one step at each of `RATES`."""
    model, loss = make_problem(config)[:2]
    _, grads, _ = rule.value_and_grad(key, params, state, *(a[: config.batch_size] for a in data.train))
    x, y = (a[: min(config.test_images or RATED_IMAGES, RATED_IMAGES)] for a in data.validation)

    def after(rate: jax.Array) -> jax.Array:
        stepped = jax.tree.map(lambda w, g: w - rate * g, params, grads)
        return jnp.mean(loss(rule.model_at(model, state).apply(stepped, x), jnp.asarray(y)))

    return jax.lax.map(after, jnp.asarray(RATES))
