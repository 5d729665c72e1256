"""Measures of a rule's gradients: direction, bias, variance and SNR, per layer and in total."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

import lax_learning as ll
from lax_learning import metrics
from lax_learning.metrics import Estimate, Moments, inner_product
from lax_learning.types import Key, Params

METRICS: dict[str, str] = {
    "cosine": "cosine to backprop",
    "angle_degrees": "angle to backprop, degrees",
    "cosine_squared": "squared cosine to backprop",
    "relative_bias": "squared bias / |gradient|²",
    "relative_variance": "variance / |gradient|²",
    "relative_error": "mean squared error / |gradient|²",
    "snr_draws": "SNR across draws",
    "snr_draws_tutorial": "SNR across draws, tutorial",
    "snr_examples": "SNR across examples",
    "snr_examples_tutorial": "SNR across examples, tutorial",
}
"""Labels of all metrics, with units; all but the angle are dimensionless."""


def measure_draws(
    rule: ll.Rule, params: Params, state: Any, x: ArrayLike, y: ArrayLike, key: Key, num_draws: int,
    *, reference: Params,
) -> dict[str, Array]:  # fmt: skip
    """Measures the quality of a rule's gradients over several draws, at least 3, on one batch.

    - `cosine`, `angle_degrees`, `cosine_squared`: of single gradients and the exact one, means over draws;
    - `relative_bias`, `relative_variance`, `relative_error`: `|E g - r|^2 / |r|^2`, debiased,
      `tr Cov g / |r|^2`, and their sum, the mean squared error;
    - `snr_draws`: `ll.metrics.snr` of `draw_moments`, `|E g|^2 / tr Cov g`; NaN for deterministic rules;
    - `snr_draws_tutorial`: the same by the tutorial's definition.

    Args:
      rule: any rule.
      params: params of the model, a sequence of layers.
      state: state of the rule.
      x, y: a batch and its targets.
      key: PRNG key for the draws.
      num_draws: number of gradients.
      reference: exact gradient r on the same batch.

    Returns:
      Each metric by layer, with the total at the end, `[layers + 1]`, and its standard error with the suffix
      `_error`; NaN for `relative_error` and the tutorial's definition: use the spread over seeds.
    """
    moments = metrics.draw_moments(rule, key, params, state, x, y, reference, num_draws)
    return _of_parts(_of_draws, moments)


def measure_examples(
    model: ll.Model, rule: ll.Rule, params: Params, state: Any, x: ArrayLike, y: ArrayLike, key: Key
) -> dict[str, Array]:
    """Measures the SNR of a rule's gradients across single examples, at least 3, each with its own draws.

    `snr_examples` is `ll.metrics.snr` of `example_moments`; `snr_examples_tutorial` uses the tutorial's
    definition. Arguments and results are those of `measure_draws`, with standard errors of NaN.
    """
    return _of_parts(_of_examples, metrics.example_moments(model, rule, key, params, state, x, y))


def _of_parts(measured: Callable[[Moments], dict[str, Estimate]], moments: Moments) -> dict[str, Array]:
    """Metrics of every layer and in total, stacked."""
    parts = [measured(part) for part in (*moments.parts(depth=1).values(), moments)]
    stacked = jax.tree.map(lambda *values: jnp.stack(values), *parts)
    values = {name: estimate.value for name, estimate in stacked.items()}
    return values | {f"{name}_error": estimate.standard_error for name, estimate in stacked.items()}


def _of_draws(moments: Moments) -> dict[str, Estimate]:
    cosines, quality = _cosines(moments), metrics.bias_variance(moments)
    bias, variance = quality.relative_bias, quality.relative_variance
    snr, varies = metrics.snr(moments).total, quality.variance.value > 0
    return {
        "cosine": _mean(cosines),
        "angle_degrees": _mean(jnp.degrees(jnp.arccos(cosines))),
        "cosine_squared": _mean(jnp.square(cosines)),
        "relative_bias": bias,
        "relative_variance": variance,
        "relative_error": _without_error(bias.value + variance.value),
        "snr_draws": Estimate(*(jnp.where(varies, each, jnp.nan) for each in snr)),
        "snr_draws_tutorial": metrics.snr(moments, variant="tutorial").total,
    }


def _of_examples(moments: Moments) -> dict[str, Estimate]:
    # The jackknife's errors need all gradients twice, and seeds have different examples anyway.
    tutorial = metrics.snr(moments, variant="tutorial").total
    both = {"snr_examples": metrics.snr(moments).total, "snr_examples_tutorial": tutorial}
    return {name: _without_error(total.value) for name, total in both.items()}


def _without_error(value: Array) -> Estimate:
    return Estimate(value, jnp.full_like(value, jnp.nan))


def _mean(values: Array) -> Estimate:
    return Estimate(jnp.mean(values), jnp.std(values, ddof=1) / values.shape[0] ** 0.5)


def _cosines(moments: Moments) -> Array:
    """`g_t . r / (|g_t| |r|)` of every gradient, computed from moments; 0 for zero gradients."""

    def total(tree: Params) -> Array:
        return jax.tree.reduce(jnp.add, tree)

    mean, reference = moments.mean, moments.reference
    along = total(moments.along_reference) + inner_product(mean, reference)
    squares = total(moments.distances) + 2 * total(moments.along_mean) + inner_product(mean, mean)
    norms = jnp.sqrt(jnp.maximum(squares, 0.0) * inner_product(reference, reference))
    return jnp.clip(along / jnp.where(norms == 0, 1, norms), -1.0, 1.0)
