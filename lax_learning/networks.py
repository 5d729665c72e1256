"""Ready-made models: multilayer perceptrons, convolutional and recurrent networks, as plain functions."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, lecun_normal, zeros
from jax.typing import DTypeLike
from jaxtyping import Array

from lax_learning import _layers
from lax_learning._checks import as_sizes, check_callable, check_choice, check_count
from lax_learning._layers import ACTIVATION, Activation, Shapes, affine, layer, max_pool, network, patches
from lax_learning.models import Model
from lax_learning.types import Weights


def identity(z: Array) -> Array:
    """Returns z."""
    return z


def relu(z: Array) -> Array:
    """Returns `jax.nn.relu(z)`; as a default, it has a name in `help`, where `jax.nn.relu` has none."""
    return jax.nn.relu(z)


def mlp(
    widths: Sequence[int],
    *,
    activation: Activation | Sequence[Activation] = relu,
    output_activation: Activation = identity,
    w_init: Initializer = lecun_normal(),  # noqa: B008 (a pure function)
    b_init: Initializer | None = zeros,
    dtype: DTypeLike = jnp.float32,
) -> Model:
    """Multilayer perceptron, `a_0 = x`, `a_l = activation_l(a_{l-1} w_l + b_l)`.

    Args:
      widths: sizes of the input, of every hidden layer and of the output.
      activation: activation of the hidden layers: one for all, or one per layer.
      output_activation: activation of the last layer; the identity gives logits.
      w_init, b_init: initialisers of every `w [in, out]` and `b [out]`; `b_init=None` leaves out the biases.
      dtype: dtype of the parameters.

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
    check_callable("output_activation", output_activation, ACTIVATION)
    hidden = _layers.for_each("activation", activation, len(widths) - 2, "hidden layer")
    layers = [layer(shape, w_init, b_init) for shape in pairwise(widths)]
    return dense_layers(layers, (*hidden, output_activation), dtype)


def dense_layers(layers: Sequence[Shapes], activations: Sequence[Activation], dtype: DTypeLike) -> Model:
    """Returns a model of successive dense layers."""

    def run(params: tuple[Weights, ...], x: Array) -> Array:
        for weights, activation in zip(params, activations, strict=True):
            x = activation(affine(x, weights))
        return x

    return network(layers, layers[0]["w"][0][:1], dtype, run)


def convnet(
    input_shape: Sequence[int],
    channels: Sequence[int],
    widths: Sequence[int],
    *,
    kernel: int | Sequence[int] = 3,
    stride: int | Sequence[int] = 1,
    pool: int | Sequence[int] = 1,
    padding: Literal["SAME", "VALID"] = "SAME",
    activation: Activation | Sequence[Activation] = relu,
    output_activation: Activation = identity,
    w_init: Initializer = lecun_normal(),  # noqa: B008
    b_init: Initializer | None = zeros,
    dtype: DTypeLike = jnp.float32,
) -> Model:
    """Convolutional network: convolutions on images, followed by dense layers.

    `a_l = pool(activation_l(patches(a_{l-1}) w_l + b_l))`, flattened before the first dense layer. A
    convolution is one product of all patches with the kernel, also under `vmap` over seeds.

    Args:
      input_shape: height, width and channels of an image.
      channels, widths: output channels of the convolutions, and sizes of the dense layers and the output.
      kernel, stride, pool: height and width of the kernel, its stride, and the size of the max-pooling
        windows; one int for all convolutions, or one per convolution.
      padding: "SAME" or "VALID".
      activation: activation of all layers except the last: one for all, or one per layer.
      w_init, output_activation, b_init, dtype: as in `mlp`; kernels are `w [height, width, in, out]`.

    Returns:
      A model of `x [batch, height, width, channels]`. Its params are a tuple with `{"w": ..., "b": [out]}`
      for each layer.

    Example:
      >>> model = convnet((28, 28, 1), (8, 16), (10,), kernel=5, stride=2)
      >>> params = jax.jit(model.init)(jax.random.key(0))
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
    check_callable("output_activation", output_activation, ACTIVATION)
    hidden = _layers.for_each("activation", activation, len(channels) + len(widths) - 1, "layer but the last")

    layers: list[Shapes] = []
    height, width, num_inputs = shape
    for i, (num_outputs, size, step, window) in enumerate(zip(channels, *sizes, strict=True)):
        layers.append(layer((size, size, num_inputs, num_outputs), w_init, b_init))
        height, width = (_layers.places(n, size, step, padding) // window for n in (height, width))
        if height < 1 or width < 1:
            raise ValueError(
                f"kernel, pool: expected an image with room for layer {i}, kernel {size} and pool {window}, "
                f"got input_shape {shape}"
            )
        num_inputs = num_outputs
    flat = height * width * num_inputs
    layers += [layer(pair, w_init, b_init) for pair in pairwise((flat, *widths))]

    def run(params: tuple[Weights, ...], x: Array) -> Array:
        each = list(zip(params, (*hidden, output_activation), strict=True))
        for (weights, phi), size, step, window in zip(each, *sizes, strict=False):
            w = weights["w"]
            z = affine(patches(x, size, step, padding), {**weights, "w": w.reshape(-1, w.shape[-1])})
            x = max_pool(phi(z), window)
        x = x.reshape(x.shape[0], -1)
        for weights, phi in each[len(channels) :]:
            x = phi(affine(x, weights))
        return x

    return network(layers, shape, dtype, run)


def rnn(
    widths: Sequence[int],
    *,
    outputs: Literal["last", "every"] = "last",
    activation: Activation = jnp.tanh,
    output_activation: Activation = identity,
    w_init: Initializer = lecun_normal(),  # noqa: B008
    recurrent_init: Initializer = lecun_normal(),  # noqa: B008
    b_init: Initializer | None = zeros,
    dtype: DTypeLike = jnp.float32,
) -> Model:
    """Recurrent network: successive recurrent layers, and a dense layer that reads the last one's states.

    `h_t = activation(x_t w + h_{t-1} u + b)`, `h_0 = 0`, in every recurrent layer, and
    `y = output_activation(h_T w + b)`, or `y_t` from every `h_t`.

    Args:
      widths: sizes of the input at one step, of every recurrent layer and of the output.
      outputs: "last": `[batch, outputs]` from the last state; "every": `[batch, steps, outputs]`.
      activation, recurrent_init: activation of the recurrent layers, and initialiser of `u [units, units]`.
      output_activation, w_init, b_init, dtype: as in `mlp`.

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
    check_callable("activation", activation, ACTIVATION)
    check_callable("output_activation", output_activation, ACTIVATION)
    *sizes, num_outputs = widths
    layers: list[Shapes] = [
        {"w": ((n, m), w_init), "u": ((m, m), recurrent_init), "b": ((m,), b_init)}
        for n, m in pairwise(sizes)
    ]
    layers.append(layer((sizes[-1], num_outputs), w_init, b_init))

    def run(params: tuple[Weights, ...], x: Array) -> Array:
        *recurrent, last = params
        x = jnp.swapaxes(x, 0, 1)
        for weights in recurrent:
            x = states(weights, x)
        read = x[-1] if outputs == "last" else jnp.swapaxes(x, 0, 1)
        return output_activation(affine(read, last))

    def states(weights: Weights, x: Array) -> Array:
        def step(h: Array, x: Array) -> tuple[Array, Array]:
            h = activation(affine(x, weights) + h @ weights["u"])
            return h, h

        start = jnp.zeros((x.shape[1], weights["u"].shape[0]), jnp.result_type(x, weights["w"]))
        # In `jax.shard_map`, the initial carry must vary over the same mesh axes as the next state.
        start = jnp.zeros_like(jax.eval_shape(lambda h, x: step(h, x)[0], start, x[0]))
        return jax.lax.scan(step, start, x)[1]

    return network(layers, ("steps", widths[0]), dtype, run)


def _sizes(name: str, value: int | Sequence[int], number: int) -> tuple[int, ...]:
    """Returns one size per convolution."""
    if not isinstance(value, Sequence):
        check_count(name, value)
        return (value,) * number
    sizes = as_sizes(name, value)
    if len(sizes) != number:
        raise ValueError(f"{name}: expected one int, or {number}, one per convolution, got {len(sizes)}")
    return sizes
