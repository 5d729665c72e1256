"""Convolutional layers under the contract of the dense ones, with the patches that their weights read."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, lecun_normal, zeros
from jax.typing import DTypeLike
from jaxtyping import Array

from lax_learning._checks import as_array, as_floating, check_choice, check_count, check_key
from lax_learning.layers import Activation, Layer, Linear, Reads, check_options, drawn, identity
from lax_learning.types import Key, Weights


def convolution(
    num_inputs: int,
    num_outputs: int,
    kernel: int | tuple[int, int],
    activation: Activation = identity,
    *,
    stride: int | tuple[int, int] = 1,
    padding: str | int | tuple[int, int] = "SAME",
    dilation: int | tuple[int, int] = 1,
    w_init: Initializer = lecun_normal(),  # noqa: B008 (a pure function)
    b_init: Initializer | None = zeros,
    dtype: DTypeLike = jnp.float32,
) -> Layer:
    """A convolutional layer `a = activation(conv(x, w) + b)` on images.

    `z = patches(x) w`: one product of all patches with the kernel, which becomes a batched product where
    many seeds run side by side.

    It stands in a `Network` beside dense layers; `flatten` in its activation leads over to them. Every rule
    runs through it, also those with taps or feedback weights, which have the shape of `w`.

    Args:
      num_inputs: channels of `x [batch, height, width, num_inputs]`.
      num_outputs: channels of `z [batch, height, width, num_outputs]`.
      kernel: height and width of the kernel, or one number for both.
      activation: `z -> a`; it may pool, and flatten before a dense layer.
      stride: steps of the kernel, down and across.
      padding: "SAME", "VALID", or how many zeros on each side, down and across.
      dilation: distance of the kernel's points, down and across.
      w_init: initialiser of `w [height, width, num_inputs, num_outputs]`.
      b_init: initialiser of `b [num_outputs]`; None for a layer without bias.
      dtype: of the parameters.

    Returns:
      The layer.

    Raises:
      TypeError, ValueError: for sizes that are no positive ints, an unknown padding, an activation or
        initialiser that is no function, or a dtype that is not floating.

    Example:
      >>> from lax_learning.layers import dense
      >>> from lax_learning.networks import Network
      >>> def pool_and_flatten(z):
      ...     return flatten(max_pool(jax.nn.relu(z)))
      >>> network = Network((convolution(1, 4, 3, pool_and_flatten), dense(14 * 14 * 4, 10)), (28, 28, 1))
      >>> network.apply(network.init(jax.random.key(0)), jnp.zeros((2, 28, 28, 1))).shape
      (2, 10)
    """
    check_count("num_inputs", num_inputs)
    check_count("num_outputs", num_outputs)
    kernel, stride, dilation = (
        _pair(name, value) for name, value in [("kernel", kernel), ("stride", stride), ("dilation", dilation)]
    )
    if isinstance(padding, str):
        check_choice("padding", padding, ("SAME", "VALID"))
        pads: str | Sequence[tuple[int, int]] = padding
    else:
        pads = [(n, n) for n in _pair("padding", padding, minimum=0)]
    check_options(activation, dtype, w_init=w_init, b_init=b_init)
    shape = (*kernel, num_inputs, num_outputs)
    reads, patches = _patches(shape, stride, pads, dilation)

    def init(key: Key) -> Weights:
        check_key("key", key)
        w_key, b_key = jax.random.split(key)
        weights = {"w": drawn("w_init", w_init, w_key, shape, dtype)}
        if b_init is not None:
            weights["b"] = drawn("b_init", b_init, b_key, (num_outputs,), dtype)
        return weights

    def linear(w: Array, x: Array) -> Array:
        return patches(x) @ reads.flat(w)

    return Layer(init, linear, activation, reads)


def max_pool(x: Array, size: int = 2) -> Array:
    """The largest value in each window of `size` x `size` pixels of `[batch, height, width, channels]`.

    Raises:
      TypeError, ValueError: for a size that is no positive int, or `x` that is no floating array of images.
    """
    check_count("size", size)
    x = as_floating("x", x)
    if x.ndim != 4 or size > min(x.shape[1:3]):
        raise ValueError(
            f"x: expected images [batch, height, width, channels] of {size} x {size} pixels or more, "
            f"got shape {list(x.shape)}"
        )
    window = (1, size, size, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")


def flatten(x: Array) -> Array:
    """`[batch, ...]` as `[batch, numbers]`."""
    x = as_array("x", x)
    if x.ndim == 0:
        raise ValueError("x: expected shape [batch, ...], got []")
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def _pair(name: str, value: int | Sequence[int], minimum: int = 1) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{name}: expected one int or two, got {value!r}")
    for number in pair:
        check_count(name, number, minimum)
    return pair


def _patches(
    shape: tuple[int, int, int, int],
    stride: tuple[int, int],
    padding: str | Sequence[tuple[int, int]],
    dilation: tuple[int, int],
) -> tuple[Reads, Callable[[Array], Array]]:
    """A convolution reads patches, in the order channel, row, column; padding is zeros in them.

    Returns:
      What it reads, and all patches of `x` as `[batch, down, across, size]`.
    """
    *kernel, num_inputs, _ = shape
    size = num_inputs * math.prod(kernel)
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]

    def padded(x: Array) -> Array:
        pads = (
            jax.lax.padtype_to_pads(x.shape[1:3], extent, stride, padding)
            if isinstance(padding, str)
            else padding
        )
        return jnp.pad(x, ((0, 0), *pads, (0, 0)))

    def places(shape: tuple[int, ...]) -> list[int]:
        """Returns the number of patches down and across the padded images."""
        return [(n - e) // s + 1 for n, e, s in zip(shape[1:3], extent, stride, strict=True)]

    def grid(x: Array) -> Array:
        """One strided slice for each point of the kernel."""
        if number(x) == 0:
            raise ValueError(
                f"x: expected images [batch, height, width, {num_inputs}] with room for a kernel of "
                f"{extent} after padding, got shape {list(x.shape)}"
            )
        x = padded(x)
        down, across = places(x.shape)
        points = [
            x[:, row : row + down * stride[0] : stride[0], column : column + across * stride[1] : stride[1]]
            for row in range(0, extent[0], dilation[0])
            for column in range(0, extent[1], dilation[1])
        ]
        return jnp.stack(points, axis=-1).reshape(*points[0].shape[:3], -1)

    def number(x: Array) -> int:
        if x.ndim != 4 or x.shape[3] != num_inputs:
            return 0
        return x.shape[0] * math.prod(max(0, n) for n in places(jax.eval_shape(padded, x).shape))

    def take(x: Array, indices: Array | None) -> Array:
        if indices is None:
            return grid(x).reshape(number(x), -1)
        x = padded(x)
        _, height, width, channels = x.shape
        down, across = places(x.shape)
        example, place = indices // (down * across), indices % (down * across)
        corner = (example * height + place // across * stride[0]) * width + place % across * stride[1]
        rows, columns = (jnp.arange(k) * d for k, d in zip(kernel, dilation, strict=True))
        pixels = corner[:, None] + (rows[:, None] * width + columns).reshape(-1)
        pixels = x.reshape(-1, channels)[pixels]  # [patches, kernel, channels]
        return jnp.swapaxes(pixels, 1, 2).reshape(indices.shape[0], -1)

    def flat(w: Array) -> Array:
        if w.shape != shape:
            raise ValueError(f"w: expected shape {list(shape)}, got {list(w.shape)}")
        return jnp.moveaxis(w, 2, 0).reshape(size, w.shape[3])

    def unflat(matrix: Array, shape: tuple[int, ...]) -> Array:
        return jnp.moveaxis(matrix.reshape(shape[2], shape[0], shape[1], shape[3]), 0, 2)

    def transformed(linear: Linear, r: Array, b: Array | None) -> Linear:
        """One kernel does both: `w R`, and what `b` adds is the same everywhere."""

        def fused(w: Array, x: Array) -> Array:
            matrix = flat(w)
            z = linear(unflat(r.T.astype(w.dtype) @ matrix, w.shape), x)
            return z if b is None else z + b.astype(w.dtype) @ matrix

        return fused

    return Reads(size, number, take, flat, unflat, transformed), grid
