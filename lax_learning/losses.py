"""Per-example losses. Half precision is raised to float32, so that loss differences survive."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from lax_learning._precision import raised


def _raise_precision(output: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    import chex  # takes a third of the library's own time to import

    output, y = jnp.asarray(output), jnp.asarray(y)
    chex.assert_equal_shape([output, y], exception_type=ValueError, custom_message="output and y")
    dtype = raised(output)
    return output.astype(dtype), y.astype(dtype)


def squared_error(output: ArrayLike, y: ArrayLike) -> Float[Array, " batch"]:
    """The tutorial's loss: squares summed over the outputs, without a factor of 1/2 or 1/n.

    `l = sum_i (y_i - output_i)^2`

    Args:
      output: the network's output, `[batch, ...]`.
      y: the targets, `[batch, ...]`.

    Returns:
      The loss of every example, `[batch]`, in float32 or wider.

    Raises:
      ValueError: if the shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> squared_error(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 0.0]])).tolist()
      [5.0]
    """
    output, y = _raise_precision(output, y)
    return jnp.sum(jnp.square(y - output), axis=tuple(range(1, y.ndim)))


def softmax_cross_entropy(output: ArrayLike, y: ArrayLike) -> Float[Array, " batch"]:
    """Cross-entropy of a softmax on logits.

    `l = - sum_i y_i log softmax(output)_i`, in nats; summed over steps where there are any

    Args:
      output: logits, `[batch, ..., classes]`.
      y: target probabilities or one-hot labels, `[batch, ..., classes]`.

    Returns:
      The loss of every example, `[batch]`, in float32 or wider.

    Raises:
      ValueError: if the shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(softmax_cross_entropy(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]]))[0]), 4)
      0.6931
    """
    output, y = _raise_precision(output, y)
    return -jnp.sum(y * jax.nn.log_softmax(output), axis=tuple(range(1, y.ndim)))


def accuracy(output: ArrayLike, y: ArrayLike) -> Float[Array, ""]:
    """The share of examples whose largest output is the label's.

    Args:
      output: `[batch, classes]`.
      y: one-hot labels, `[batch, classes]`.

    Returns:
      A number in 0..1.

    Raises:
      ValueError: if the shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> float(accuracy(jnp.array([[0.2, 0.8], [0.6, 0.4]]), jnp.array([[0.0, 1.0], [0.0, 1.0]])))
      0.5
    """
    output, y = _raise_precision(output, y)
    return jnp.mean(jnp.argmax(output, axis=-1) == jnp.argmax(y, axis=-1), dtype=output.dtype)


def balanced_accuracy(output: ArrayLike, y: ArrayLike) -> Float[Array, ""]:
    """The accuracy within each class, averaged over the classes that occur.

    `mean_c (correct examples of class c) / (examples of class c)`

    Args:
      output: `[batch, classes]`.
      y: one-hot labels, `[batch, classes]`.

    Returns:
      A number in 0..1.

    Raises:
      ValueError: if the shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> y = jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
      >>> float(balanced_accuracy(jnp.array([[2.0, 1.0]] * 4), y))
      0.5
    """
    output, y = _raise_precision(output, y)
    correct = jnp.argmax(output, axis=-1) == jnp.argmax(y, axis=-1)
    of_class = jnp.sum(y, axis=0)
    recall = jnp.sum(jnp.where(correct[:, None], y, 0), axis=0) / jnp.maximum(of_class, 1)
    return jnp.sum(recall) / jnp.sum(of_class > 0, dtype=output.dtype)
