"""Critics: they tell curves of a library of symbolic functions from those of untrained networks.

After symrep, https://github.com/fabxy/symrep, 2022.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from lax_learning._checks import as_floating, check_count, check_key
from lax_learning.symbolic.generators import as_entries
from lax_learning.symbolic.relu_networks import relu_network
from lax_learning.types import Key, Params


class Critic(NamedTuple):
    """Judge of curves, each sampled at the same ordered points.

    Fields:
      init: `key -> params`.
      apply: `(params, curves [number, *curve_shape]) -> logits [number]`, above 0 for a real one.
      curve_shape: `(points,)` or `(points, channels)`.
    """

    init: Callable[[Key], Params]
    apply: Callable[[Params, ArrayLike], Array]
    curve_shape: tuple[int, ...]


def critic(
    num_points: int,
    *,
    hidden: Sequence[int] = (64, 64),
    channels: int = 1,
    embedding: Sequence[int] = (64, 64),
    dtype: DTypeLike = jnp.float32,
) -> Critic:
    """A critic that is a ReLU multilayer perceptron on the points of a curve.

    `logit = mlp(curve)`, or `logit = mlp(embedding(curve[0]), ..., embedding(curve[points - 1]))`

    Weights and biases start uniform in `+-1 / sqrt(inputs of the layer)`, as PyTorch's do.

    Args:
      num_points: numbers in a curve; after `stack` points times (1 + columns).
      hidden: widths of the hidden layers; none for a linear critic.
      channels: numbers at a point, 1 + columns for curves that `embed` extended. With more than one a
        multilayer perceptron, shared by all points, maps them to one number.
      embedding: widths of its hidden layers; plays no part with one channel.
      dtype: of the parameters.

    Returns:
      The critic. Its params are `{"critic": ..., "embedding": ...}`, each those of an `mlp`, the latter
      empty with one channel.

    Example:
      >>> judge = critic(30, hidden=(16, 16), channels=2, embedding=(8,))
      >>> judge.apply(judge.init(jax.random.key(0)), jnp.ones((5, 30, 2))).shape
      (5,)
    """
    check_count("num_points", num_points)
    check_count("channels", channels)
    judge = relu_network(num_points, hidden, 1, dtype)
    shared = relu_network(channels, embedding, 1, dtype, name="embedding")
    curve_shape = (num_points,) if channels == 1 else (num_points, channels)

    def init(key: Key) -> Params:
        check_key("key", key)
        critic_key, embedding_key = jax.random.split(key)
        return {
            "critic": judge.init(critic_key),
            "embedding": () if channels == 1 else shared.init(embedding_key),
        }

    def apply(params: Params, curves: ArrayLike) -> Float[Array, " number"]:
        curves = check_curves("curves", curves, curve_shape)
        params = as_entries(params, ("critic", "embedding"))
        if channels > 1:
            numbers = shared.apply(params["embedding"], curves.reshape(-1, channels))
            curves = numbers.reshape(-1, num_points)
        return judge.apply(params["critic"], curves)[:, 0]

    return Critic(init, apply, curve_shape)


def check_curves(name: str, curves: ArrayLike, curve_shape: tuple[int, ...]) -> Array:
    """Returns curves as an array; raises unless they are floating, `[number, *curve_shape]`, at least one."""
    curves = as_floating(name, curves)
    if curves.shape[1:] != curve_shape or curves.ndim == 0:
        expected = ", ".join(["number", *map(str, curve_shape)])
        raise ValueError(f"{name}: expected shape [{expected}], got {list(curves.shape)}")
    if curves.shape[0] == 0:
        raise ValueError(f"{name}: expected at least one curve, got shape {list(curves.shape)}")
    return curves
