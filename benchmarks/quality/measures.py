"""Measures of a rule's gradients: direction, bias, variance and SNR, per layer and in total."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

import lax_learning as ll
from lax_learning.metrics import (
    Estimate,
    Moments,
    bias_variance,
    draw_moments,
    example_moments,
    inner_product,
    snr,
)
from lax_learning.types import Key, Params

METRICS: dict[str, str] = {
    "cosine": "cosine to backprop",
    "angle_degrees": "angle to backprop, degrees",
    "cosine_squared": "squared cosine to backprop",
    "relative_bias": "squared bias / |gradient|²",
    "relative_variance": "variance / |gradient|²",
    "snr_draws": "SNR across draws",
    "snr_draws_tutorial": "SNR across draws, tutorial",
    "snr_examples": "SNR across examples",
    "snr_examples_tutorial": "SNR across examples, tutorial",
}
"""Labels of all metrics, with units; all but the angle are dimensionless."""


def measure_draws(
    rule: ll.Rule,
    params: Params,
    state: Any,
    x: ArrayLike,
    y: ArrayLike,
    key: Key,
    num_draws: int,
    *,
    reference: Params,
) -> dict[str, Array]:
    """Measures the quality of a rule's gradients over several draws on one batch.

    - `cosine`, `angle_degrees`, `cosine_squared`: between single gradients and the exact one r, means over
      draws;
    - `relative_bias`, `relative_variance`: `|E g - r|^2 / |r|^2`, debiased, and `tr Cov g / |r|^2`; the mean
      squared error is their sum;
    - `snr_draws`: `ll.metrics.snr` of `draw_moments`, `|E g|^2 / tr Cov g`; NaN for deterministic rules;
    - `snr_draws_tutorial`: the same by the tutorial's definition.

    Args:
      rule: any rule.
      params: params of the model, a sequence of layers.
      state: state of the rule.
      x: `[batch, ...]`.
      y: `[batch, ...]`.
      key: PRNG key for the draws.
      num_draws: number of gradients, at least 3.
      reference: exact gradient on the same batch.

    Returns:
      Each metric by layer, with the total at the end, `[layers + 1]`, and its standard error with the suffix
      `_error` (NaN for the tutorial's definition: use the spread over seeds).

    Raises:
      ValueError: if `num_draws` is below 3.
    """
    if num_draws < 3:
        raise ValueError(f"num_draws: expected at least 3, got {num_draws}")
    return _of_parts(_of_draws, draw_moments(rule, key, params, state, x, y, reference, num_draws))


def measure_examples(
    model: ll.Model, rule: ll.Rule, params: Params, state: Any, x: ArrayLike, y: ArrayLike, key: Key
) -> dict[str, Array]:
    """Measures the SNR of a rule's gradients across single examples, each with its own draws.

    `snr_examples` is `ll.metrics.snr` of `example_moments`; `snr_examples_tutorial` uses the tutorial's
    definition. Arguments and results are those of `measure_draws`, with at least 3 examples, `x [examples,
    ...]`. Standard errors are NaN: use the spread over seeds.
    """
    return _of_parts(_of_examples, example_moments(model, rule, key, params, state, x, y))


def _of_parts(metrics: Callable[[Moments], dict[str, Estimate]], moments: Moments) -> dict[str, Array]:
    """Metrics of every layer and in total, stacked."""
    parts = [metrics(part) for part in (*moments.parts(depth=1).values(), moments)]
    return {
        f"{name}{suffix}": jnp.stack([part[name][i] for part in parts])
        for name in parts[0]
        for i, suffix in enumerate(("", "_error"))
    }


def _of_draws(moments: Moments) -> dict[str, Estimate]:
    cosines, quality = _cosines(moments), bias_variance(moments)
    varies = quality.variance.value > 0
    return {
        "cosine": _mean(cosines),
        "angle_degrees": _mean(jnp.degrees(jnp.arccos(cosines))),
        "cosine_squared": _mean(jnp.square(cosines)),
        "relative_bias": quality.relative_bias,
        "relative_variance": quality.relative_variance,
        "snr_draws": Estimate(*(jnp.where(varies, each, jnp.nan) for each in snr(moments).total)),
        "snr_draws_tutorial": snr(moments, variant="tutorial").total,
    }


def _of_examples(moments: Moments) -> dict[str, Estimate]:
    # Without the jackknife's errors, which need all gradients twice: seeds have different examples.
    ratios = {"snr_examples": snr(moments), "snr_examples_tutorial": snr(moments, variant="tutorial")}
    return {k: Estimate(v.total.value, jnp.full_like(v.total.value, jnp.nan)) for k, v in ratios.items()}


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
