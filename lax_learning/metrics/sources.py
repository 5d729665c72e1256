"""Moments of gradients by source of noise: over the draws of a rule, and over examples."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lax_learning._arrays import as_arrays, as_real, is_numbers
from lax_learning._checks import check_count, check_instance, check_key, check_samples, check_shapes
from lax_learning._lazily import lazily
from lax_learning._scaling import HEADROOM, divided, largest_magnitude, scale_for, scale_of
from lax_learning._sites._batch import as_batch
from lax_learning._sites._factors import Factors, factors, has_factors
from lax_learning.metrics.moments import Moments, ScaledMoments, streamed_moments
from lax_learning.models import Model
from lax_learning.types import Key, Params, Rule, Signals


def draw_moments(
    rule: Rule, key: Key, params: Params, state: Any, x: Any, y: Any, reference: Params, num_samples: int
) -> Moments:
    """Computes the moments of a rule's gradients over its random draws, on one batch.

    Args:
      rule: any rule.
      key: split into one key per draw.
      params, state: parameters of the model, and state of the rule, the same for all draws.
      x, y: a batch and its targets.
      reference: the exact gradients, for `bias_variance`.
      num_samples: number T of draws, at least 3.
    """
    check_instance("rule", rule, Rule, "a Rule")
    check_key("key", key)
    check_samples("num_samples", num_samples, 3)
    if reference is None:
        raise TypeError("reference: expected the exact gradients, got None")

    def draw(key: Key) -> Params:
        return _of_constants(params, rule.value_and_grad(key, params, state, x, y)[1])

    return streamed_moments(draw, jax.random.split(key, num_samples), _of_constants(params, reference))


def _of_constants(params: Params, grads: Params) -> Params:
    """Returns the gradients, with float32 zeros for non-floating leaves of params."""
    if jax.tree.structure(grads) != jax.tree.structure(params):
        return grads  # which is refused later

    def of_leaf(leaf: Any, g: Any) -> Any:
        return g if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else jnp.zeros(jnp.shape(g))

    return jax.tree.map(of_leaf, params, grads)


def example_moments(
    model: Model, rule: Rule, key: Key, params: Params, state: Any, x: Any, y: Any
) -> Moments:
    """Computes the moments of a rule's gradients over examples, each in a batch of one with its own draws.

    For a rule with teaching signals, the moments of a matrix that is used in one product per example are
    themselves products, `X^T D / T` and `(X*X)^T (D*D) / T`. These are used if all other parameters, such as
    biases and kernels, are no larger than the pre-activations at their sites, and if inputs and signals vary
    enough to resolve the variance; otherwise, gradients are streamed.

    Args:
      model, rule: any rule, and its model.
      key: PRNG key for the draws of the rule.
      params, state: parameters of the model, and state of the rule.
      x, y: a batch of T >= 3 examples and its targets.
    """
    check_instance("model", model, Model, "a Model")
    check_instance("rule", rule, Rule, "a Rule")
    examples = as_examples(key, x, y)
    check_count("number of examples in x", examples[0].shape[0], 3)

    def draw(example: Any) -> Params:
        return _of_constants(params, rule.value_and_grad(*as_batch_of_one(example, params, state))[1])

    if rule.signals is None or not has_factors(model, params, examples[1]):
        return streamed_moments(draw, examples)
    return _moments_of_factors(model, rule.signals, params, state, examples)


def as_examples(key: Key, x: Any, y: Any) -> tuple[Array, Any, Any]:
    """Returns keys, inputs and targets of all examples; raises unless x and y have the same number."""
    check_key("key", key)
    x, size = as_batch(x)
    y = as_arrays("y", y, is_numbers)
    if any(jnp.shape(leaf)[:1] != (size,) for leaf in jax.tree.leaves(y)):
        got = [list(jnp.shape(leaf)) for leaf in jax.tree.leaves(y)]
        raise ValueError(f"y: expected a leading axis of {size} examples as in x, got shapes {got}")
    return jax.random.split(key, size), x, y


def as_batch_of_one(example: Any, params: Params, state: Any) -> tuple[Any, ...]:
    """Returns the arguments of a rule for one example of `as_examples`."""
    key, x, y = example
    x, y = jax.tree.map(lambda leaf: leaf[None], (x, y))
    return key, params, state, x, y


def _moments_of_factors(
    model: Model, signals: Callable[..., Signals], params: Params, state: Any, examples: Any
) -> Moments:
    def pulled(example: Any) -> tuple[Factors, Params | None]:
        args = as_batch_of_one(example, params, state)
        found = signals(*args)
        return factors(model, params, args[3], found.deltas), found.rest

    every, rest = jax.vmap(pulled, out_axes=(0, None))(examples)
    leaves, structure = jax.tree.flatten(params)
    size = examples[0].shape[0]
    rests = [None] * len(leaves) if rest is None else structure.flatten_up_to(rest)

    def of_leaf(i: int, leaf: Any, rest: Array | None) -> Moments:
        if i in every.products:
            return product_moments(*every.products[i], rest)
        if i in every.others:
            grads = every.others[i] if rest is None else every.others[i] + rest
            return streamed_moments(lambda g: g, grads, chunk_size=size)
        return streamed_moments(lambda _: jnp.zeros(jnp.shape(leaf)), jnp.arange(size))  # a constant

    moments = structure.unflatten(map(of_leaf, range(len(leaves)), leaves, rests))
    return jax.tree.transpose(structure, None, moments)


def product_moments(x: Array, d: Array, rest: Array | None = None) -> Moments:
    """Computes the moments of outer products `g_t = x_t d_t^T + rest`, from two matrix products.

    `E g^2 - m^2` loses digits if the variance is small compared to `E g^2`. If any entry loses more than 7 of
    24 bits, for example because both factors hardly vary, the products are streamed instead.

    Args:
      x, d: `[T, in]` and `[T, out]`, T >= 3.
      rest: `[in, out]`, the same for all t, or None.

    Example:
      >>> x, d = jax.random.normal(jax.random.key(0), (10, 3)), jax.random.normal(jax.random.key(1), (10, 2))
      >>> product_moments(x, d).variance.shape
      (3, 2)
    """
    x, d = as_real("x", x), as_real("d", d)
    if x.ndim != 2 or d.ndim != 2 or len(x) != len(d):
        raise ValueError(f"x, d: expected shapes [T, in] and [T, out], got {x.shape} and {d.shape}")
    if rest is not None:
        rest = as_real("rest", rest)
        check_shapes(["rest"], [rest], [(x.shape[1], d.shape[1])])
    count = x.shape[0]
    check_count("number of products", count, 3)
    x_scale, largest = scale_of(x), largest_magnitude(x) * largest_magnitude(d)
    largest = largest if rest is None else largest + largest_magnitude(rest)
    scale = scale_for(jnp.minimum(largest, float(jnp.finfo(largest.dtype).max)))
    # Each factor gets half of the headroom of a scale, so that their product has all of it. The factor of d
    # may overflow; its root cannot, and is exact, because scales are powers of four.
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
    along_mean, whole = along - square_norm, mean
    if rest is not None:
        rest = divided(rest, scale)
        whole = mean + rest
        along_mean += jnp.sum(product(x, rest) * d, axis=1) - jnp.sum(mean * rest)
    variance, distances = spread * (count / (count - 1)), jnp.maximum(lengths - 2 * along + square_norm, 0)
    by_products = ScaledMoments(whole, variance, distances, along_mean, jnp.zeros_like(along))

    def streamed(x: Array, d: Array, rest: Array | None, _: Any) -> tuple[Array, ScaledMoments]:
        def gradient(factors: tuple[Array, Array]) -> Array:
            return jnp.outer(*factors) if rest is None else jnp.outer(*factors) + rest

        return streamed_moments(gradient, (x, d))[:2]

    def kept(x: Array, d: Array, rest: Array | None, by_products: Any) -> tuple[Array, ScaledMoments]:
        return jnp.ones((), x.dtype), by_products

    loses_digits = jnp.any(spread < 2.0**-7 * second)
    ratio, scaled = lazily(loses_digits, streamed, kept, x, d, rest, by_products)
    return Moments(scale * ratio, scaled, None)
