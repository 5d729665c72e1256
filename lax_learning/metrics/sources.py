"""The two sources of noise in a gradient, apart: across a rule's own draws, and across examples."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from lax_learning._checks import (
    as_array,
    as_real,
    check_count,
    check_inputs,
    check_instance,
    check_key,
    check_samples,
    check_targets,
)
from lax_learning._lazily import lazily
from lax_learning._scaling import HEADROOM, divided, largest_magnitude, scale_for, scale_of
from lax_learning.feedback import without_feedback, without_feedback_of
from lax_learning.layers import dense_product
from lax_learning.metrics.moments import Moments, ScaledMoments, streamed_moments
from lax_learning.networks import Network
from lax_learning.types import Key, Params, Rule, Weights


def draw_moments(
    rule: Rule, key: Key, params: Params, x: ArrayLike, y: ArrayLike, reference: Params, num_samples: int
) -> Moments:
    """The moments of a rule's gradients over its own draws, on one batch.

    Args:
      rule: any rule.
      key: split into one key a draw.
      params: the rule's params.
      x: `[batch, ...]`.
      y: `[batch, ...]`.
      reference: the exact gradients, for `bias_variance`; feedback weights are left out.
      num_samples: number T of draws, at least 3.

    Returns:
      Moments of the gradients of the forward weights.

    Raises:
      ValueError: for fewer than three draws, or a reference of other shapes than the gradients.
      TypeError: unless `rule` is a `Rule` without a state and `key` a key.
    """
    check_instance("rule", rule, Rule, "a Rule")
    check_key("key", key)
    check_samples("num_samples", num_samples, 3)
    if reference is None:
        raise TypeError("reference: expected the exact gradients, got None")
    expected = without_feedback_of("reference", reference)

    def draw(key: Key) -> Params:
        return without_feedback(rule.value_and_grad(key, params, x, y)[1])

    return streamed_moments(draw, jax.random.split(key, num_samples), expected)


def example_moments(
    network: Network, rule: Rule, key: Key, params: Params, x: ArrayLike, y: ArrayLike
) -> Moments:
    """The moments of a rule's gradients over examples, each as in a batch of one with draws of its own.

    For rules with signals on dense layers that read one vector an example these are matrix products,
    `X^T D / T` and `(X*X)^T (D*D) / T`. The gradients of the others are streamed, and of layers where
    inputs and signals vary so little that the variance is lost in their squares.

    Args:
      network: the rule's network.
      rule: any rule.
      key: for the rule's draws.
      params: the rule's params.
      x: `[T, ...]`, T >= 3 examples.
      y: `[T, ...]`.

    Returns:
      Moments of the gradients of the forward weights.

    Raises:
      ValueError: for fewer than three examples, or another number of targets.
      TypeError: unless `network` is a `Network`, `rule` a `Rule` without a state and `key` a key.
    """
    check_instance("network", network, Network, "a Network")
    check_instance("rule", rule, Rule, "a Rule")
    check_key("key", key)
    x, y = as_array("x", x), as_array("y", y)
    check_inputs(x, network.input_shape)
    check_count("number of examples in x", x.shape[0], 3)
    check_targets(y, x.shape[0])
    if rule.signals is not None and _is_dense(network, params, x):
        _, inputs, deltas = rule.signals(key, params, x, y)
        return _outer_product_moments(params, inputs, deltas)

    def draw(example: tuple[Key, Array, Array]) -> Params:
        key, x, y = example
        return without_feedback(rule.value_and_grad(key, params, x[None], y[None])[1])

    return streamed_moments(draw, (jax.random.split(key, x.shape[0]), x, y))


def _is_dense(network: Network, params: Params, x: Array) -> bool:
    """Returns whether every layer multiplies one vector an example with its weights."""
    inputs = jax.eval_shape(lambda p, x: network.forward(p, x).inputs, params, x)
    layers = zip(network.layers, inputs, strict=True)
    return all(layer.linear is dense_product and read.ndim == 2 for layer, read in layers)


def _outer_product_moments(params: Params, inputs: tuple[Array, ...], deltas: tuple[Array, ...]) -> Moments:
    def of_layer(weights: Weights, x: Array, d: Array) -> dict[str, Moments]:
        x, d = as_real("inputs", x), as_real("deltas", d)
        moments = {"w": _moments_of_products(x, d)}
        if "b" in weights:
            moments["b"] = streamed_moments(lambda d: d, d, chunk_size=d.shape[0])
        return moments

    layers = tuple(of_layer(*each) for each in zip(params, inputs, deltas, strict=True))

    def gathered(field: Callable[[Moments], Any]) -> Any:
        return jax.tree.map(field, layers, is_leaf=lambda node: isinstance(node, Moments))

    fields = [gathered(lambda moments, i=i: moments.scaled[i]) for i in range(len(ScaledMoments._fields))]
    return Moments(gathered(lambda moments: moments.scale), ScaledMoments(*fields), None)


def _moments_of_products(x: Array, d: Array) -> Moments:
    """The moments of `g_t = x_t d_t^T`, from two matrix products where these are accurate.

    `E g^2 - m^2` loses as many digits as the variance is smaller than `E g^2`. If any entry loses more than 7
    of 24 bits, for example where both factors hardly vary, the products are streamed instead.
    """
    count = x.shape[0]
    x_scale, largest = scale_of(x), largest_magnitude(x) * largest_magnitude(d)
    scale = scale_for(jnp.minimum(largest, float(jnp.finfo(largest.dtype).max)))
    # Both factors get half of the headroom of a scale, so that their product has all of it. The factor of d
    # may leave the range of the type; its root does not, and is exact, since scales are powers of four.
    share = HEADROOM**0.5
    root = jnp.sqrt(x_scale * share) / jnp.sqrt(scale)
    x, d = divided(x, x_scale * share), d * root * root
    product = functools.partial(jnp.matmul, precision="highest")
    mean = product(x.T, d) / count
    second = product(jnp.square(x).T, jnp.square(d)) / count
    spread = second - jnp.square(mean)
    along = jnp.sum(product(x, mean) * d, axis=1)
    square_norm = jnp.sum(jnp.square(mean))
    lengths = jnp.sum(jnp.square(x), axis=1) * jnp.sum(jnp.square(d), axis=1)
    by_products = ScaledMoments(
        mean,
        spread * (count / (count - 1)),
        jnp.maximum(lengths - 2 * along + square_norm, 0),
        along - square_norm,
        jnp.zeros_like(along),
    )

    def streamed(x: Array, d: Array, by_products: ScaledMoments) -> tuple[Array, ScaledMoments]:
        moments = streamed_moments(lambda factors: jnp.outer(*factors), (x, d))
        return moments.scale, moments.scaled

    ratio, scaled = lazily(
        jnp.any(spread < 2.0**-7 * second),
        streamed,
        lambda x, d, by_products: (jnp.ones((), x.dtype), by_products),
        x, d, by_products,
    )  # fmt: skip
    return Moments(scale * ratio, scaled, None)
