"""What is measured of a rule's gradients: direction, bias, variance and SNR, per layer and in total."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

import lax_learning as ll
from lax_learning.metrics import Moments, bias_variance, inner_product, snr, stacked_moments
from lax_learning.types import Key, Params

METRICS: dict[str, str] = {
    "cosine": "cosine to backprop",
    "angle_degrees": "angle to backprop, degrees",
    "cosine_squared": "squared cosine to backprop",
    "relative_bias": "squared bias / |gradient|²",
    "relative_variance": "variance / |gradient|²",
    "snr": "SNR of an update, |E g|² / tr Cov g",
    "snr_tutorial": "SNR of an update, tutorial's form",
}
"""Every metric and its label with units; all are dimensionless but the angle."""


def measure(
    rule: ll.Rule,
    params: Params,
    x: ArrayLike,
    y: ArrayLike,
    key: Key,
    num_draws: int,
    *,
    reference: Params,
) -> dict[str, Array]:
    """The quality of a rule's gradients on one batch, over its own draws.

    - `cosine`, `angle_degrees`, `cosine_squared`: of single gradients to the exact one, means over draws;
    - `relative_bias`, `relative_variance`: `|E g - r|^2 / |r|^2`, debiased, and `tr Cov g / |r|^2`; the mean
      squared error is their sum;
    - `snr`, `snr_tutorial`: of an update, whose noise is that of the draws and of the choice of examples:
      each gradient is that of as many examples, drawn with replacement from the batch. 0 where none varies.

    Args:
      rule: any rule.
      params: its params.
      x: `[batch, ...]`.
      y: `[batch, ...]`.
      key: for the draws.
      num_draws: number T of gradients on the batch, and as many for the SNR, at least 3. Their 2 T gradients
        are kept, so that the rule is compiled once; eight are computed at a time.
      reference: the exact gradient of the same batch; feedback weights are left out.

    Returns:
      Each of `METRICS`, `[layers + 1]`: of every layer, and of all together at the end; and with the suffix
      `_error` the standard error over draws (not of the SNR, for which take the spread over seeds).

    Raises:
      ValueError: for fewer than three draws.
    """
    if num_draws < 3:
        raise ValueError(f"num_draws: expected at least 3, got {num_draws}")
    draw_key, choice_key = jax.random.split(key)
    x, y = jnp.asarray(x), jnp.asarray(y)
    count = x.shape[0]
    whole = jnp.broadcast_to(jnp.arange(count), (num_draws, count))
    chosen = jax.random.randint(choice_key, (num_draws, count), 0, count)

    def draw(xs: tuple[Key, Array]) -> Params:
        key, examples = xs
        return ll.without_feedback(rule.value_and_grad(key, params, x[examples], y[examples])[1])

    xs = jax.random.split(draw_key, 2 * num_draws), jnp.concatenate([whole, chosen])
    chunk = max(d for d in range(1, 9) if 2 * num_draws % d == 0)
    gradients = jax.lax.map(draw, xs, batch_size=chunk)
    moments = stacked_moments(
        jax.tree.map(lambda g: g[:num_draws], gradients), ll.without_feedback(reference)
    )
    updates = stacked_moments(jax.tree.map(lambda g: g[num_draws:], gradients))
    parts = [_of_moments(*each) for each in zip(_parts(moments), _parts(updates), strict=True)]
    return {name: jnp.stack([part[name] for part in parts]) for name in parts[0]}


def _parts(moments: Moments) -> tuple[Moments, ...]:
    return (*moments.layers(), moments)


def _of_moments(moments: Moments, updates: Moments) -> dict[str, Array]:
    cosines = _cosines(moments)
    found: dict[str, Array] = {}
    for name, values in {
        "cosine": cosines,
        "angle_degrees": jnp.degrees(jnp.arccos(cosines)),
        "cosine_squared": jnp.square(cosines),
    }.items():
        found[name] = jnp.mean(values)
        found[f"{name}_error"] = jnp.std(values, ddof=1) / values.shape[0] ** 0.5
    quality = bias_variance(moments)
    for name in ("relative_bias", "relative_variance"):
        found[name], found[f"{name}_error"] = getattr(quality, name)
    found["snr"] = snr(updates).total.value
    found["snr_tutorial"] = snr(updates, variant="tutorial").total.value
    return found


def _cosines(moments: Moments) -> Array:
    """`g_t . r / (|g_t| |r|)` of every gradient, from the projections that the moments hold; 0 for zeros."""

    def total(tree: Params) -> Array:
        return jax.tree.reduce(jnp.add, tree)

    mean, reference = moments.mean, moments.reference
    along = total(moments.along_reference) + inner_product(mean, reference)
    squares = total(moments.distances) + 2 * total(moments.along_mean) + inner_product(mean, mean)
    norms = jnp.sqrt(jnp.maximum(squares, 0.0) * inner_product(reference, reference))
    return jnp.clip(jnp.where(norms > 0, along / jnp.where(norms > 0, norms, 1), 0.0), -1.0, 1.0)
