"""Layers: what one row of weights computes and reads; dense ones."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, lecun_normal, zeros
from jax.typing import DTypeLike
from jaxtyping import Array

from lax_learning._checks import (
    as_array,
    as_floating,
    check_callable,
    check_count,
    check_floating_dtype,
    check_key,
    check_shapes,
)
from lax_learning.types import Key, Weights

Activation = Callable[[Array], Array]
ACTIVATION = "a function of z, such as jax.nn.relu"
Linear = Callable[[Array, Array], Array]


class Reads(NamedTuple):
    """The vectors that the weights of a layer read: inputs of a dense layer, patches of a convolution.

    Fields:
      size: numbers in a vector.
      number: `x [batch, ...] -> vectors in x`, 0 if those in it are of another size.
      take: `(x, indices or None for all) -> [vectors, size]`.
      flat: `w -> [size, outputs]`, one row for each number read; raises for weights that do not read them.
      unflat: the inverse of `flat`: `(matrix, shape of w) -> w`.
      transformed: `(linear, R, b or None) -> linear` of a layer that reads `R v + b` instead of `v`.
    """

    size: int
    number: Callable[[Array], int]
    take: Callable[[Array, Array | None], Array]
    flat: Callable[[Array], Array]
    unflat: Callable[[Array, tuple[int, ...]], Array]
    transformed: Callable[[Linear, Array, Array | None], Linear]


class Layer(NamedTuple):
    """One weight layer: `a = activation(linear(w, x) + b)`.

    Fields:
      init: `key -> {"w": ..., "b": ...}`; `b` is absent where the layer has no bias.
      linear: `(w, x [batch, ...]) -> z`, linear in `w` and in `x`.
      activation: `z -> a`; it may also pool or reshape, if the layer keeps no state.
      reads: what its weights read; None if the layer does not say.
      state_size: 0, or of how many units the layer keeps the activity, to read it behind its input at the
        next step: `a_t = activation(linear(w, [x_t, a_{t-1}]) + b)`, `a_0 = 0`, `x [batch, steps, ...]`.
    """

    init: Callable[[Key], Weights]
    linear: Linear
    activation: Activation
    reads: Reads | None = None
    state_size: int = 0


def identity(z: Array) -> Array:
    """The linear activation `a = z`."""
    return z


def dense_product(w: Array, x: Array) -> Array:
    """`x w`: the linear part of a dense layer, of `w [in, out]` and `x [batch, in]`, to `[batch, out]`."""
    w, x = as_array("w", w), as_array("x", x)
    if x.ndim == 0:
        raise ValueError("x: expected shape [batch, inputs], got []")
    return x @ _matrix(w, x.shape[-1])


def _matrix(w: Array, size: int) -> Array:
    if w.ndim != 2 or w.shape[0] != size:
        raise ValueError(f"w: expected shape [{size}, outputs], got {list(w.shape)}")
    return w


def dense(
    num_inputs: int,
    num_outputs: int,
    activation: Activation = identity,
    *,
    w_init: Initializer = lecun_normal(),  # noqa: B008 (a pure function)
    b_init: Initializer | None = zeros,
    dtype: DTypeLike = jnp.float32,
) -> Layer:
    """A dense layer `a = activation(x w + b)`.

    Args:
      num_inputs: size of `x [batch, num_inputs]`.
      num_outputs: size of `z [batch, num_outputs]`.
      activation: `z -> a`.
      w_init: initialiser of `w [num_inputs, num_outputs]`, as in `jax.nn.initializers`.
      b_init: initialiser of `b [num_outputs]`; None for a layer without bias.
      dtype: of the parameters.

    Returns:
      The layer.

    Raises:
      TypeError, ValueError: for sizes that are no positive ints, an activation or initialiser that is no
        function, or a dtype that is not floating.
    """
    check_count("num_inputs", num_inputs)
    check_count("num_outputs", num_outputs)
    check_options(activation, dtype, w_init=w_init, b_init=b_init)

    def init(key: Key) -> Weights:
        check_key("key", key)
        w_key, b_key = jax.random.split(key)
        weights = {"w": drawn("w_init", w_init, w_key, (num_inputs, num_outputs), dtype)}
        if b_init is not None:
            weights["b"] = drawn("b_init", b_init, b_key, (num_outputs,), dtype)
        return weights

    return Layer(init, dense_product, activation, _dense_reads(num_inputs))


def check_options(activation: Activation, dtype: Any, **inits: Initializer | None) -> None:
    """Raises TypeError unless the options that all layers have in common are of the right kind."""
    check_callable("activation", activation, ACTIVATION)
    check_floating_dtype("dtype", dtype)
    for name, init in inits.items():
        if not (name == "b_init" and init is None):
            expected = "an initialiser (key, shape, dtype) -> array, such as jax.nn.initializers.zeros"
            check_callable(name, init, expected, num_arguments=3)


def drawn(name: str, init: Initializer, key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
    """Draws from an initialiser; raises unless that is a floating-point array of the shape asked for."""
    value = as_floating(name, init(key, shape, dtype))
    check_shapes([name], [value], [shape])
    return value


def _dense_reads(size: int) -> Reads:
    """A dense layer reads the inputs `[size]` of an example."""

    def transformed(linear: Linear, r: Array, b: Array | None) -> Linear:
        def on_transformed(w: Array, x: Array) -> Array:
            if x.shape[-1] != size:
                raise ValueError(f"x: expected vectors of {size} to decorrelate, got shape {list(x.shape)}")
            z = x @ r.T.astype(x.dtype)
            return linear(w, z if b is None else z + b.astype(x.dtype))

        return on_transformed

    return Reads(
        size,
        number=lambda x: x.shape[0] if x.ndim == 2 and x.shape[1] == size else 0,
        take=lambda x, indices: x if indices is None else x[indices],
        flat=lambda w: _matrix(w, size),
        unflat=lambda matrix, shape: matrix,
        transformed=transformed,
    )


def rows(size: int) -> Reads:
    """The rows of an array `[..., size]` of any number of axes."""
    flat = _dense_reads(size)
    return flat._replace(
        number=lambda x: math.prod(x.shape[:-1]) if x.ndim and x.shape[-1] == size else 0,
        take=lambda x, indices: flat.take(x.reshape(-1, x.shape[-1]), indices),
    )
