"""The critic: tells curves of a library of symbolic functions from those of untrained networks."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from lax_learning._checks import (
    as_floating,
    as_params,
    check_count,
    check_key,
)
from lax_learning.symbolic._relu_network import relu_network, torch_uniform
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
      num_points: numbers in a curve; for `stack`ed ones points times (1 + columns).
      hidden: widths of the hidden layers; none for a linear critic.
      channels: numbers at a point, 1 + columns for curves that `embed` extended. With more than one a
        multilayer perceptron, shared by all points, maps them to one number.
      embedding: widths of its hidden layers; plays no part with one channel.
      dtype: of the parameters.

    Returns:
      The critic. Its params are `{"critic": ..., "embedding": ...}`, each those of an `mlp`, the latter
      empty with one channel.

    Raises:
      TypeError, ValueError: for sizes that are no positive ints and, at trace time, curves of another
        shape or none.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> judge = critic(30, hidden=(16, 16), channels=2, embedding=(8,))
      >>> judge.apply(judge.init(jax.random.key(0)), jnp.ones((5, 30, 2))).shape
      (5,)

    References:
      https://github.com/fabxy/symrep, 2022.
    """
    check_count("num_points", num_points)
    check_count("channels", channels)
    judge = relu_network(num_points, hidden, 1, torch_uniform, torch_uniform, dtype)
    shared = relu_network(channels, embedding, 1, torch_uniform, torch_uniform, dtype, "embedding")
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
        if not isinstance(params, Mapping) or not {"critic", "embedding"} <= params.keys():
            got = sorted(params) if isinstance(params, Mapping) else type(params).__name__
            raise ValueError(f"params: expected the entries 'critic' and 'embedding', got {got}")
        params = as_params(params)
        if channels > 1:
            numbers = shared.apply(params["embedding"], curves.reshape(-1, channels))
            curves = numbers.reshape(-1, num_points)
        return judge.apply(params["critic"], curves)[:, 0]

    return Critic(init, apply, curve_shape)


def check_curves(name: str, curves: ArrayLike, curve_shape: tuple[int, ...]) -> Array:
    """The curves as an array; raises unless they are floating, `[number, *curve_shape]`, at least one."""
    curves = as_floating(name, curves)
    if curves.shape[1:] != curve_shape or curves.ndim == 0:
        expected = ", ".join(["number", *map(str, curve_shape)])
        raise ValueError(f"{name}: expected shape [{expected}], got {list(curves.shape)}")
    if curves.shape[0] == 0:
        raise ValueError(f"{name}: expected at least one curve, got shape {list(curves.shape)}")
    return curves


def stack(curves: ArrayLike, *extensions: ArrayLike) -> Float[Array, "number numbers"]:
    """Curves made longer: the numbers of every extension follow, point by point.

    `[curve, extension_1[0, :], extension_1[1, :], ..., extension_2[0, :], ...]`

    Args:
      curves: `[number, points]`.
      *extensions: common to all curves, `[points, columns]`, such as their input; or one a curve,
        `[number, points, columns]`, such as their gradients.

    Returns:
      `[number, points * (1 + columns of all extensions)]`, in the dtype of the curves.

    Raises:
      TypeError, ValueError: for arrays that are not floating or do not fit the curves.

    Example:
      >>> import jax.numpy as jnp
      >>> stack(jnp.zeros((1, 2)), jnp.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
      [[0.0, 0.0, 1.0, 2.0, 3.0, 4.0]]

    References:
      https://github.com/fabxy/symrep, 2022.
    """
    curves, columns = _extended(curves, extensions)
    return jnp.concatenate([curves, *[c.reshape(curves.shape[0], -1) for c in columns]], axis=1)


def embed(curves: ArrayLike, *extensions: ArrayLike) -> Float[Array, "number points channels"]:
    """Curves made wider: the columns of every extension become further channels of their points.

    `[i, p] -> [curve_i[p], extension_1[i, p, :], extension_2[i, p, :], ...]`

    Args:
      curves: `[number, points]`.
      *extensions: as of `stack`.

    Returns:
      `[number, points, 1 + columns of all extensions]`, in the dtype of the curves.

    Raises:
      TypeError, ValueError: as `stack`.

    Example:
      >>> import jax.numpy as jnp
      >>> embed(jnp.zeros((1, 2)), jnp.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
      [[[0.0, 1.0, 2.0], [0.0, 3.0, 4.0]]]

    References:
      https://github.com/fabxy/symrep, 2022.
    """
    curves, columns = _extended(curves, extensions)
    return jnp.concatenate([curves[:, :, None], *columns], axis=2)


def _extended(curves: ArrayLike, extensions: Sequence[ArrayLike]) -> tuple[Array, list[Array]]:
    """The curves, and every extension as `[number, points, columns]`."""
    curves = as_floating("curves", curves)
    if curves.ndim != 2:
        raise ValueError(f"curves: expected shape [number, points], got {list(curves.shape)}")
    curves, columns = check_curves("curves", curves, curves.shape[1:]), []
    for i, extension in enumerate(extensions):
        name = f"extensions[{i}]"
        extension = as_floating(name, extension)
        if extension.ndim not in (2, 3) or extension.shape[:-1] not in (curves.shape, curves.shape[1:]):
            n, p = curves.shape
            expected = f"[{p}, columns] or [{n}, {p}, columns]"
            raise ValueError(f"{name}: expected shape {expected}, got {list(extension.shape)}")
        shape = (*curves.shape, extension.shape[-1])
        columns.append(jnp.broadcast_to(extension.astype(curves.dtype), shape))
    return curves, columns
