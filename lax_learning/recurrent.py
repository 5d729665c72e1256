"""Recurrent layers and networks under the contract of the dense ones."""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, lecun_normal, zeros
from jax.typing import DTypeLike
from jaxtyping import Array

from lax_learning._checks import check_callable, check_choice, check_count, check_key
from lax_learning.layers import (
    ACTIVATION,
    Activation,
    Layer,
    check_options,
    dense,
    dense_product,
    drawn,
    identity,
    rows,
)
from lax_learning.networks import Network, as_widths
from lax_learning.types import Key, Weights


def recurrent(
    num_inputs: int,
    num_units: int,
    activation: Activation = jnp.tanh,
    *,
    w_init: Initializer = lecun_normal(),  # noqa: B008 (a pure function)
    recurrent_init: Initializer = lecun_normal(),  # noqa: B008
    b_init: Initializer | None = zeros,
    dtype: DTypeLike = jnp.float32,
) -> Layer:
    """A recurrent layer `a_t = activation([x_t, a_{t-1}] w + b)`, `a_0 = 0`, on sequences.

    `w` holds the weights of the inputs above those of the states. One matrix for all that a unit reads is
    all that rules need: taps and teaching signals are `[batch, steps, num_units]`, what a synapse reads is
    `[x_t, a_{t-1}]`, and its update is the sum over steps. Backprop is backprop through time; feedback
    weights carry errors to the layer below (upper rows) and back in time (lower rows, where recurrent
    weights would). The state is kept in the dtype of `x` and `w`.

    Args:
      num_inputs: size of `x_t`; `x` is `[batch, steps, num_inputs]`.
      num_units: size of `z_t` and `a_t`.
      activation: `z_t -> a_t`, unit by unit.
      w_init: initialiser of the weights of the inputs, `[num_inputs, num_units]`.
      recurrent_init: initialiser of the weights of the states, `[num_units, num_units]`.
      b_init: initialiser of `b [num_units]`; None for a layer without bias.
      dtype: of the parameters.

    Returns:
      The layer, with `w [num_inputs + num_units, num_units]`.

    Raises:
      TypeError, ValueError: for sizes that are no positive ints, an activation or initialiser that is no
        function, or a dtype that is not floating.

    Example:
      >>> layer = recurrent(3, 4)
      >>> network = Network((layer,), (7, 3))  # 7 steps of 3 inputs
      >>> network.apply(network.init(jax.random.key(0)), jnp.ones((2, 7, 3))).shape
      (2, 7, 4)

    References:
      Werbos, Backpropagation through time: what it does and how to do it,
      https://doi.org/10.1109/5.58337, 1990.
      Murray, Local online learning in recurrent networks with random feedback,
      https://doi.org/10.7554/eLife.43299, 2019 (feedback weights in place of recurrent ones).
    """
    check_count("num_inputs", num_inputs)
    check_count("num_units", num_units)
    check_options(activation, dtype, w_init=w_init, recurrent_init=recurrent_init, b_init=b_init)

    def init(key: Key) -> Weights:
        check_key("key", key)
        input_key, state_key, b_key = jax.random.split(key, 3)
        blocks = [
            drawn("w_init", w_init, input_key, (num_inputs, num_units), dtype),
            drawn("recurrent_init", recurrent_init, state_key, (num_units, num_units), dtype),
        ]
        weights = {"w": jnp.concatenate(blocks)}
        if b_init is not None:
            weights["b"] = drawn("b_init", b_init, b_key, (num_units,), dtype)
        return weights

    return Layer(init, dense_product, activation, rows(num_inputs + num_units), num_units)


def rnn(
    widths: Sequence[int],
    *,
    steps: int,
    outputs: str = "last",
    activation: Activation = jnp.tanh,
    output_activation: Activation = identity,
    w_init: Initializer = lecun_normal(),  # noqa: B008 (a pure function)
    recurrent_init: Initializer = lecun_normal(),  # noqa: B008
    b_init: Initializer | None = zeros,
    dtype: DTypeLike = jnp.float32,
) -> Network:
    """A recurrent network: recurrent layers in a row, and a dense one that reads their states.

    `h_t = activation(x_t W + h_{t-1} U + b)` in every recurrent layer, with `w` the rows of W above those
    of U, and `y = output_activation(h_T w + b)`, or `y_t` from every `h_t`. Every rule takes it in place of
    an `mlp`.

    Args:
      widths: sizes of the input at a step, of every recurrent layer and of the output.
      steps: length T of the sequences; `x` is `[batch, steps, inputs]`. Params do not depend on it, but for
        those of direct feedback alignment, whose errors go to each step by weights of its own.
      outputs: "last": `[batch, outputs]` from the state at the end; "every": `[batch, steps, outputs]`.
      activation: of the recurrent layers, unit by unit.
      output_activation: of the last layer; the identity gives logits.
      w_init: initialiser of every W and of the last layer's `w`.
      recurrent_init: initialiser of every U.
      b_init: initialiser of every `b`; None for a network without biases.
      dtype: of the parameters.

    Returns:
      The network.

    Raises:
      TypeError, ValueError: for fewer than three widths, widths or steps that are no positive ints, unknown
        outputs, or options as in `recurrent`.

    Example:
      >>> network = rnn((28, 64, 10), steps=28)  # the rows of an image, one after the other
      >>> params = network.init(jax.random.key(0))
      >>> params[0]["w"].shape, network.apply(params, jnp.zeros((5, 28, 28))).shape
      ((92, 64), (5, 10))
    """
    widths = as_widths("widths", widths)
    if len(widths) < 3:
        raise ValueError(f"widths: expected an input, a recurrent and an output size at least, got {widths}")
    check_count("steps", steps)
    check_callable("output_activation", output_activation, ACTIVATION)
    check_choice("outputs", outputs, ("last", "every"))
    *sizes, num_outputs = widths
    hidden = [
        recurrent(
            n_in, n_out, activation, w_init=w_init, recurrent_init=recurrent_init, b_init=b_init, dtype=dtype
        )
        for n_in, n_out in pairwise(sizes)
    ]
    read_out = dense(sizes[-1], num_outputs, output_activation, w_init=w_init, b_init=b_init, dtype=dtype)
    reads = rows(sizes[-1])
    if outputs == "last":
        read_out = read_out._replace(linear=_product_of_last)
        reads = reads._replace(
            number=lambda x: x.shape[0] if x.ndim == 3 and x.shape[-1] == sizes[-1] else 0,
            take=lambda x, indices: x[:, -1] if indices is None else x[indices, -1],
        )
    return Network((*hidden, read_out._replace(reads=reads)), (steps, widths[0]))


def _product_of_last(w: Array, x: Array) -> Array:
    """`x_T w`: of the last state of `x [batch, steps, in]`."""
    return dense_product(w, x[:, -1])
