"""Critics of curves, and the ReLU networks that critics and generators use."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from lax_learning._arrays import as_params
from lax_learning._checks import (
    as_floating,
    as_sizes,
    check_count,
    check_floating_dtype,
    check_key,
    check_memory,
    describe,
)
from lax_learning.models import Model
from lax_learning.networks import dense_layers, identity
from lax_learning.types import Key, Params

MAX_LAYERS = 1000


class Critic(NamedTuple):
    """A classifier of curves, all sampled at the same ordered points.

    Fields:
      init: `key -> params`.
      apply: `(params, curves [number, *curve_shape]) -> logits [number]`; > 0 means real.
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
    """A critic that applies a ReLU multilayer perceptron to the points of a curve.

    `logit = mlp(curve)`, or `logit = mlp(embedding(curve[0]), ..., embedding(curve[points - 1]))`

    Weights and biases are initialised from `U(-r, r)` with `r = 1 / sqrt(fan_in)`, as in PyTorch.

    Args:
      num_points: numbers per curve; points times (1 + columns) for curves extended by "stack".
      hidden: widths of the hidden layers; empty for a linear critic.
      channels: numbers per point; 1 + columns for curves extended by "embed". If there is more than one, a
        multilayer perceptron, shared by all points, maps them to one number.
      embedding: hidden widths of that perceptron; ignored with one channel.
      dtype: dtype of the params, `{"critic": ..., "embedding": ...}`. Each entry has the params of an `mlp`;
        the embedding is empty with one channel.

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
        embedding = () if channels == 1 else shared.init(embedding_key)
        return {"critic": judge.init(critic_key), "embedding": embedding}

    def apply(params: Params, curves: ArrayLike) -> Float[Array, " number"]:
        curves = check_curves("curves", curves, curve_shape)
        params = as_entries(params, ("critic", "embedding"))
        if channels > 1:
            numbers = shared.apply(params["embedding"], curves.reshape(-1, channels))
            curves = numbers.reshape(-1, num_points)
        return judge.apply(params["critic"], curves)[:, 0]

    return Critic(init, apply, curve_shape)


def check_curves(name: str, curves: ArrayLike, curve_shape: tuple[int, ...]) -> Array:
    """Returns curves as an array; raises unless they are floats `[number, *curve_shape]`, number > 0."""
    curves = as_floating(name, curves)
    if curves.ndim == 0 or curves.shape[1:] != curve_shape:
        expected = ", ".join(["number", *map(str, curve_shape)])
        raise ValueError(f"{name}: expected shape [{expected}], got {list(curves.shape)}")
    if curves.shape[0] == 0:
        raise ValueError(f"{name}: expected at least one curve, got shape {list(curves.shape)}")
    return curves


def torch_uniform(fan_in: int) -> Initializer:
    """Returns a uniform initialiser within +-1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: Key, shape: Sequence[int], dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound, out_sharding=out_sharding)

    return init


def relu_network(
    num_inputs: int,
    hidden: Sequence[int],
    num_outputs: int,
    dtype: Any,
    w_init: Callable[[int], Initializer] = torch_uniform,
    b_init: Callable[[int], Initializer] | None = torch_uniform,
    *,
    name: str = "hidden",
    copies: int = 1,
) -> Model:
    """Builds ReLU layers and a linear output layer; initialisers are made for each number of inputs.

    Errors refer to the widths by `name`; `copies` such networks must fit into memory.
    """
    check_count("num_inputs", num_inputs)
    hidden = as_sizes(name, hidden, "a sequence of widths")
    check_floating_dtype("dtype", dtype)
    if len(hidden) > MAX_LAYERS:
        raise ValueError(f"{name}: expected at most {MAX_LAYERS} layers, got {len(hidden)}")
    pairs = list(itertools.pairwise((num_inputs, *hidden, num_outputs)))
    check_memory(f"num_inputs, {name} and number of outputs", [(copies, *pair) for pair in pairs], dtype)
    layers = [{"w": ((n, m), w_init(n)), "b": ((m,), b_init and b_init(n))} for n, m in pairs]
    return dense_layers(layers, (*(jax.nn.relu for _ in hidden), identity), dtype)


def as_entries(params: Any, entries: Sequence[str]) -> Any:
    """Returns params as arrays; raises unless they are a dict with these entries."""
    if not isinstance(params, Mapping) or any(params.get(e) is None for e in entries):
        given = isinstance(params, Mapping)
        got = sorted(name for name in params if params[name] is not None) if given else describe(params)
        raise ValueError(f"params: expected a dict with the entries {list(entries)}, got {got}")
    return as_params(params)
