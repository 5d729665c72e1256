"""Models to start from: multilayer perceptrons, convolutional and recurrent networks, as plain functions."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, lecun_normal, zeros
from jax.typing import DTypeLike
from jaxtyping import Array

from lax_learning._checks import (
    as_array,
    as_floating,
    as_layers,
    as_sizes,
    as_tuple,
    check_callable,
    check_choice,
    check_count,
    check_floating_dtype,
    check_key,
    check_shapes,
)
from lax_learning.models import Model
from lax_learning.types import Key, Params, Weights

Activation = Callable[[Array], Array]
_ACTIVATION = "a function of z, such as jax.nn.relu"
_INITIALISER = "an initialiser (key, shape, dtype) -> array, such as jax.nn.initializers.zeros"
_Shapes = dict[str, tuple[tuple[int, ...], Initializer | None]]
"""Shape and initialiser of every weight of a layer; without an initialiser it is left out."""


def identity(z: Array) -> Array:
    """Returns z."""
    return z


def mlp(
    widths: Sequence[int],
    *,
    activation: Activation | Sequence[Activation] = jax.nn.relu,
    output_activation: Activation = identity,
    w_init: Initializer = lecun_normal(),  # noqa: B008 (a pure function)
    b_init: Initializer | None = zeros,
    dtype: DTypeLike = jnp.float32,
) -> Model:
    """Multilayer perceptron, `a_0 = x`, `a_l = activation_l(a_{l-1} w_l + b_l)`.

    Args:
      widths: sizes of the input, of every hidden layer and of the output.
      activation: of the hidden layers: one for all, or one for each.
      output_activation: of the last layer; the identity gives logits.
      w_init: initialiser of every `w [in, out]`.
      b_init: initialiser of every `b [out]`; None for a network without biases.
      dtype: of the parameters.

    Returns:
      A model of `x [batch, in]`. Its params are a tuple with `{"w": [in, out], "b": [out]}` for each layer.

    Example:
      >>> model = mlp((784, 500, 10), activation=jax.nn.sigmoid)
      >>> params = model.init(jax.random.key(0))
      >>> model.apply(params, jnp.zeros((32, 784))).shape
      (32, 10)
    """
    widths = as_sizes("widths", widths)
    if len(widths) < 2:
        raise ValueError(f"widths: expected at least an input and an output size, got {widths}")
    _check_options(dtype, output_activation, w_init=w_init, b_init=b_init)
    hidden = _for_each("activation", activation, len(widths) - 2, "hidden layer")
    return dense_layers(
        [_dense(n, m, w_init, b_init) for n, m in pairwise(widths)], (*hidden, output_activation), dtype
    )


def dense_layers(layers: Sequence[_Shapes], activations: Sequence[Activation], dtype: DTypeLike) -> Model:
    """Returns the model of dense layers in a row."""

    input_shape = layers[0]["w"][0][:1]

    def apply(params: Params, x: Any) -> Array:
        params, x = _checked(params, x, layers, input_shape)
        for weights, activation in zip(params, activations, strict=True):
            x = activation(_affine(x, weights))
        return x

    return Model(apply, _init(layers, dtype))


def convnet(
    input_shape: Sequence[int],
    channels: Sequence[int],
    widths: Sequence[int],
    *,
    kernel: int | Sequence[int] = 3,
    stride: int | Sequence[int] = 1,
    pool: int | Sequence[int] = 1,
    padding: str = "SAME",
    activation: Activation | Sequence[Activation] = jax.nn.relu,
    output_activation: Activation = identity,
    w_init: Initializer = lecun_normal(),  # noqa: B008
    b_init: Initializer | None = zeros,
    dtype: DTypeLike = jnp.float32,
) -> Model:
    """Convolutional network: convolutions on images, and dense layers on top.

    `a_l = pool(activation_l(patches(a_{l-1}) w_l + b_l))`, flattened before the first dense layer. A
    convolution is one product of all patches with the kernel, which stays a batched product where many seeds
    run side by side.

    Args:
      input_shape: height, width and channels of an image.
      channels: numbers of output channels of the convolutions.
      widths: sizes of the dense layers; the last is that of the output.
      kernel, stride, pool: height and width of the kernel, of its steps, and of the windows whose maximum is
        taken; one int for all convolutions, or one for each.
      padding: "SAME" or "VALID".
      activation: of all layers but the last: one for all, or one for each.
      w_init: initialiser of every kernel `w [height, width, in, out]` and matrix `w [in, out]`.
      output_activation, b_init, dtype: as of `mlp`.

    Returns:
      A model of `x [batch, height, width, channels]`. Its params are a tuple with `{"w": ..., "b": [out]}`
      for each layer.

    Example:
      >>> model = convnet((28, 28, 1), (8, 16), (10,), kernel=5, stride=2)
      >>> params = model.init(jax.random.key(0))
      >>> params[2]["w"].shape, model.apply(params, jnp.zeros((2, 28, 28, 1))).shape
      ((784, 10), (2, 10))
    """
    shape = as_sizes("input_shape", input_shape)
    if len(shape) != 3:
        raise ValueError(f"input_shape: expected (height, width, channels), got {shape}")
    channels, widths = as_sizes("channels", channels), as_sizes("widths", widths)
    if not channels or not widths:
        raise ValueError(f"channels, widths: expected at least one layer each, got {channels}, {widths}")
    options = {"kernel": kernel, "stride": stride, "pool": pool}
    sizes = [_sizes(name, value, len(channels)) for name, value in options.items()]
    check_choice("padding", padding, ("SAME", "VALID"))
    _check_options(dtype, output_activation, w_init=w_init, b_init=b_init)
    activations = _for_each("activation", activation, len(channels) + len(widths) - 1, "layer but the last")

    layers: list[_Shapes] = []
    height, width, num_inputs = shape
    for i, (num_outputs, size, step, window) in enumerate(zip(channels, *sizes, strict=True)):
        layers.append({"w": ((size, size, num_inputs, num_outputs), w_init), "b": ((num_outputs,), b_init)})
        height, width = (_places(n, size, step, padding) // window for n in (height, width))
        if height < 1 or width < 1:
            raise ValueError(
                f"kernel, pool: expected an image with room for layer {i}, kernel {size} and pool {window}, "
                f"got input_shape {shape}"
            )
        num_inputs = num_outputs
    dense = pairwise((height * width * num_inputs, *widths))
    layers += [_dense(n, m, w_init, b_init) for n, m in dense]

    def apply(params: Params, x: Any) -> Array:
        params, x = _checked(params, x, layers, shape)
        for weights, phi, size, step, window in zip(params, activations, *sizes, strict=False):
            w = weights["w"]
            z = _affine(_patches(x, size, step, padding), {**weights, "w": w.reshape(-1, w.shape[-1])})
            x = _max_pool(phi(z), window)
        x = x.reshape(x.shape[0], -1)
        last = (*activations[len(channels) :], output_activation)
        for weights, phi in zip(params[len(channels) :], last, strict=True):
            x = phi(_affine(x, weights))
        return x

    return Model(apply, _init(layers, dtype))


def rnn(
    widths: Sequence[int],
    *,
    outputs: str = "last",
    activation: Activation = jnp.tanh,
    output_activation: Activation = identity,
    w_init: Initializer = lecun_normal(),  # noqa: B008
    recurrent_init: Initializer = lecun_normal(),  # noqa: B008
    b_init: Initializer | None = zeros,
    dtype: DTypeLike = jnp.float32,
) -> Model:
    """Recurrent network: recurrent layers in a row, and a dense one that reads their states.

    `h_t = activation(x_t w + h_{t-1} u + b)`, `h_0 = 0`, in every recurrent layer, and
    `y = output_activation(h_T w + b)`, or `y_t` from every `h_t`.

    Args:
      widths: sizes of the input at a step, of every recurrent layer and of the output.
      outputs: "last": `[batch, outputs]` from the last state; "every": `[batch, steps, outputs]`.
      activation: of the recurrent layers.
      recurrent_init: initialiser of every `u [units, units]`.
      output_activation, w_init, b_init, dtype: as of `mlp`.

    Returns:
      A model of `x [batch, steps, in]`. Its params are a tuple with `{"w": ..., "u": ..., "b": ...}` for each
      recurrent layer and `{"w": ..., "b": ...}` for the last.

    Example:
      >>> model = rnn((28, 64, 10))  # the rows of an image, one after the other
      >>> params = model.init(jax.random.key(0))
      >>> params[0]["u"].shape, model.apply(params, jnp.zeros((5, 28, 28))).shape
      ((64, 64), (5, 10))

    References:
      Werbos, Backpropagation through time: what it does and how to do it,
      https://doi.org/10.1109/5.58337, 1990.
    """
    widths = as_sizes("widths", widths)
    if len(widths) < 3:
        raise ValueError(f"widths: expected at least an input, a recurrent and an output size, got {widths}")
    check_choice("outputs", outputs, ("last", "every"))
    check_callable("activation", activation, _ACTIVATION)
    _check_options(dtype, output_activation, w_init=w_init, recurrent_init=recurrent_init, b_init=b_init)
    *sizes, num_outputs = widths
    layers: list[_Shapes] = [
        {"w": ((n, m), w_init), "u": ((m, m), recurrent_init), "b": ((m,), b_init)}
        for n, m in pairwise(sizes)
    ]
    layers.append(_dense(sizes[-1], num_outputs, w_init, b_init))

    def apply(params: Params, x: Any) -> Array:
        (*recurrent, last), x = _checked(params, x, layers, ("steps", widths[0]))
        x = jnp.swapaxes(x, 0, 1)
        for weights in recurrent:
            x = _states(weights, x)
        read = x[-1] if outputs == "last" else jnp.swapaxes(x, 0, 1)
        return output_activation(_affine(read, last))

    def _states(weights: Weights, x: Array) -> Array:
        def step(h: Array, x: Array) -> tuple[Array, Array]:
            h = activation(_affine(x, weights) + h @ weights["u"])
            return h, h

        start = jnp.zeros((x.shape[1], weights["u"].shape[0]), jnp.result_type(x, weights["w"]))
        # In `jax.shard_map` the state varies over devices as soon as anything does that it is made of.
        start = jnp.zeros_like(jax.eval_shape(lambda h, x: step(h, x)[0], start, x[0]))
        return jax.lax.scan(step, start, x)[1]

    return Model(apply, _init(layers, dtype))


def _checked(
    params: Params, x: Any, layers: Sequence[_Shapes], input_shape: Sequence[int | str]
) -> tuple[tuple[Weights, ...], Array]:
    """Returns the weights of each layer and a batch; raises unless they have the shapes of the network."""
    params, x = as_layers("params", params, len(layers)), as_array("x", x)
    sizes = zip(x.shape[1:], input_shape, strict=False)
    if x.ndim != 1 + len(input_shape) or any(n != m for n, m in sizes if m != "steps"):
        expected = ", ".join(["batch", *map(str, input_shape)])
        raise ValueError(f"x: expected shape [{expected}], got {list(x.shape)}")
    for i, (weights, shapes) in enumerate(zip(params, layers, strict=True)):
        for name, (shape, _) in shapes.items():
            if name in weights or name != "b":
                check_shapes([f"params[{i}][{name!r}]"], [weights.get(name)], [shape])
    return params, x


def _affine(x: Array, weights: Weights) -> Array:
    z = x @ weights["w"]
    return z + weights["b"] if "b" in weights else z


def _dense(num_inputs: int, num_outputs: int, w_init: Any, b_init: Any) -> _Shapes:
    return {"w": ((num_inputs, num_outputs), w_init), "b": ((num_outputs,), b_init)}


def _init(layers: Sequence[_Shapes], dtype: DTypeLike) -> Callable[[Key], Params]:
    def weights(key: Key, shapes: _Shapes) -> Weights:
        keys = jax.random.split(key, len(shapes))
        drawn = {}
        for k, (name, (shape, init)) in zip(keys, shapes.items(), strict=True):
            if init is not None:
                at = "recurrent_init" if name == "u" else f"{name}_init"
                drawn[name] = as_floating(at, init(k, shape, dtype))
                check_shapes([at], [drawn[name]], [shape])
        return drawn

    def init(key: Key) -> Params:
        check_key("key", key)
        keys = jax.random.split(key, len(layers))
        return tuple(weights(k, shapes) for k, shapes in zip(keys, layers, strict=True))

    return init


def _places(length: int, size: int, step: int, padding: str) -> int:
    """Returns the number of places of a kernel along an axis."""
    return -(-length // step) if padding == "SAME" else (length - size) // step + 1


def _patches(x: Array, size: int, step: int, padding: str) -> Array:
    """Returns all patches, `[batch, down, across, size * size * channels]`, by one slice a point."""
    pads = jax.lax.padtype_to_pads(x.shape[1:3], (size, size), (step, step), padding)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    down, across = (_places(n, size, step, "VALID") for n in x.shape[1:3])
    points = [
        x[:, i : i + (down - 1) * step + 1 : step, j : j + (across - 1) * step + 1 : step]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.stack(points, axis=-2).reshape(*points[0].shape[:3], -1)


def _max_pool(x: Array, window: int) -> Array:
    if window == 1:
        return x
    shape = (1, window, window, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, shape, shape, "VALID")


def _sizes(name: str, value: int | Sequence[int], number: int) -> tuple[int, ...]:
    """Returns one size for each of a number of convolutions."""
    if not isinstance(value, Sequence):
        check_count(name, value)
        return (value,) * number
    sizes = as_sizes(name, value)
    if len(sizes) != number:
        raise ValueError(f"{name}: expected one int, or {number}, one a convolution, got {len(sizes)}")
    return sizes


def _for_each(name: str, value: Any, number: int, of: str) -> tuple[Activation, ...]:
    each: tuple[Any, ...] = (value,) * number if callable(value) else as_tuple(name, value, _ACTIVATION)
    for i, function in enumerate(each):
        check_callable(name if callable(value) else f"{name}[{i}]", function, _ACTIVATION)
    if len(each) != number:
        raise ValueError(f"{name}: expected {number}, one a {of}, got {len(each)}")
    return each


def _check_options(dtype: Any, output_activation: Any, **inits: Any) -> None:
    check_callable("output_activation", output_activation, _ACTIVATION)
    check_floating_dtype("dtype", dtype)
    for name, init in inits.items():
        if not (name == "b_init" and init is None):
            check_callable(name, init, _INITIALISER, num_arguments=3)
