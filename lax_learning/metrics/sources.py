"""The two sources of noise in a gradient, apart: across a rule's own draws, and across examples."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from lax_learning._checks import check_count
from lax_learning.feedback import without_feedback
from lax_learning.layers import dense_product
from lax_learning.metrics.moments import Moments, streamed_moments, widen
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
    """
    check_count("num_samples", num_samples, 3)

    def draw(key: Key) -> Params:
        return without_feedback(rule.value_and_grad(key, params, x, y)[1])

    return streamed_moments(draw, jax.random.split(key, num_samples), without_feedback(reference))


def example_moments(
    network: Network, rule: Rule, key: Key, params: Params, x: ArrayLike, y: ArrayLike
) -> Moments:
    """The moments of a rule's gradients over examples, each as in a batch of one with draws of its own.

    For rules with signals on dense layers that read one vector an example these are matrix products,
    `X^T D / T` and `(X*X)^T (D*D) / T`; the gradients of the others are streamed.

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
      ValueError: for fewer than three examples.
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    check_count("number of examples in x", x.shape[0], 3)
    if rule.signals is not None and _is_dense(network, params, x):
        _, inputs, deltas = rule.signals(key, params, x, y)
        return _outer_product_moments(params, inputs, deltas)

    def draw(example: tuple[Key, Array, Array]) -> Params:
        key, x, y = example
        return without_feedback(rule.value_and_grad(key, params, x[None], y[None])[1])

    return streamed_moments(draw, (jax.random.split(key, x.shape[0]), x, y))


def _is_dense(network: Network, params: Params, x: Array) -> bool:
    """Whether every layer multiplies one vector an example with its weights."""
    inputs = jax.eval_shape(lambda p, x: network.forward(p, x).inputs, params, x)
    layers = zip(network.layers, inputs, strict=True)
    return all(layer.linear is dense_product and read.ndim == 2 for layer, read in layers)


def _outer_product_moments(params: Params, inputs: tuple[Array, ...], deltas: tuple[Array, ...]) -> Moments:
    def of_products(x: Array, d: Array) -> tuple[Array, ...]:
        """Mean, variance, `|g_t - m|^2` and `(g_t - m) . m` of the outer products `g_t = x_t d_t^T`."""
        count = x.shape[0]
        mean = x.T @ d / count
        second = jnp.square(x).T @ jnp.square(d) / count
        spread = second - jnp.square(mean)
        rounding = jnp.finfo(second.dtype).eps * count**0.5 * second
        variance = jnp.where(spread <= rounding, 0.0, spread) * (count / (count - 1))
        square_norm = jnp.sum(jnp.square(mean))
        along = jnp.sum((x @ mean) * d, axis=1) - square_norm
        lengths = jnp.sum(jnp.square(x), axis=1) * jnp.sum(jnp.square(d), axis=1)
        return mean, variance, lengths - 2 * along - square_norm, along

    def of_layer(weights: Weights, x: Array, d: Array) -> dict[str, tuple[Array, ...]]:
        x, d = widen(x), widen(d)
        leaves = {"w": of_products(x, d)}
        if "b" in weights:
            mean, variance, distances, along = of_products(jnp.ones_like(x[:, :1]), d)
            leaves["b"] = (mean[0], variance[0], distances, along)
        return leaves

    layers = [of_layer(*each) for each in zip(params, inputs, deltas, strict=True)]
    mean, variance, distances, along = (
        tuple({name: leaf[i] for name, leaf in leaves.items()} for leaves in layers) for i in range(4)
    )
    return Moments(mean, variance, distances, along, jax.tree.map(jnp.zeros_like, along), None)
