"""Measures of the microlearning experiment: accuracy, cosine, SNR, bias and variance, matched steps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import lax_learning as ll
from experiments.microlearning.config import Config
from lax_learning.metrics import (
    Moments,
    bias_variance,
    by_layer,
    cosine_similarity,
    draw_moments,
    example_moments,
    snr,
)

RATED_IMAGES = 1000
RATES = tuple(2.0 ** (i / 2) for i in range(-40, 13))
"""Learning rates among which the matched one is searched."""

Metrics = dict[str, jax.Array]


def of_layers(metric: Callable[..., jax.Array], *gradients: Any) -> jax.Array:
    """A metric of the gradients of every layer, and of all layers together at the end."""
    return jnp.stack([*by_layer(metric, *gradients), metric(*gradients)])


def of_moments(metric: Callable[[Moments], jax.Array], moments: Moments) -> jax.Array:
    """A metric of the moments of every layer, and of all layers together at the end."""
    return jnp.stack([metric(each) for each in (*moments.layers(), moments)])


def evaluator(network: ll.Network, loss: ll.Loss, rule: ll.Rule) -> Callable[..., Metrics]:
    """Accuracy and loss on the test images, and the cosine of the rule's update there to backprop's."""
    exact = ll.backprop(network, loss)

    def evaluate(key: jax.Array, params: Any, data: ll.data.Splits) -> Metrics:
        x, y = data.test
        output = network.apply(params, x)
        grads = ll.without_feedback(rule.value_and_grad(key, params, x, y)[1])
        reference = ll.without_feedback(exact.value_and_grad(key, params, x, y)[1])
        return {
            "test_accuracy": ll.accuracy(output, y),
            "test_loss": jnp.mean(loss(output, jnp.asarray(y))),
            "cosine": of_layers(cosine_similarity, grads, reference),
        }

    return evaluate


def measurement(
    network: ll.Network, loss: ll.Loss, rule: ll.Rule, in_gradient_units: ll.Rule, config: Config
) -> Callable[..., Metrics]:
    """SNR across examples at one draw each, and bias and variance across draws on one batch."""
    exact = ll.backprop(network, loss)

    def measure(key: jax.Array, params: Any, data: ll.data.Splits) -> Metrics:
        example_key, draw_key = jax.random.split(key)
        x, y = (a[: config.snr_images] for a in data.test)
        examples = example_moments(network, rule, example_key, params, x, y)
        x, y = (a[: config.batch_size] for a in data.train)
        _, reference = exact.value_and_grad(key, params, x, y)
        draws = draw_moments(in_gradient_units, draw_key, params, x, y, reference, config.draws)
        return {
            "snr": of_moments(lambda m: snr(m).total.value, examples),
            "snr_tutorial": of_moments(lambda m: snr(m, variant="tutorial").total.value, examples),
            "relative_bias": of_moments(lambda m: bias_variance(m).relative_bias.value, draws),
            "relative_variance": of_moments(lambda m: bias_variance(m).relative_variance.value, draws),
        }

    return measure


def one_step_losses(
    network: ll.Network, loss: ll.Loss, rule: ll.Rule, config: Config
) -> Callable[..., jax.Array]:
    """The loss on the validation images after one step of each of `RATES`."""

    def losses(key: jax.Array, params: Any, data: ll.data.Splits) -> jax.Array:
        x, y = (a[: config.batch_size] for a in data.train)
        _, grads = rule.value_and_grad(key, params, x, y)
        x, y = (a[: min(config.test_images, RATED_IMAGES)] for a in data.validation)

        def after(rate: jax.Array) -> jax.Array:
            stepped = jax.tree.map(lambda w, g: w - rate * g, params, grads)
            return jnp.mean(loss(network.apply(stepped, x), jnp.asarray(y)))

        return jax.lax.map(after, jnp.asarray(RATES))

    return losses
