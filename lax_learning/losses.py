"""Per-example losses. Half precision is raised to float32, so that differences are not rounded away."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from lax_learning._arrays import as_real
from lax_learning._checks import as_array, describe
from lax_learning._precision import raised


def _as_pair(output: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    """Returns both as arrays of real numbers; raises ValueError unless they have the same shape."""
    output, y = as_array("output", output), as_array("y", y)
    if y.shape == output.shape[:-1] != output.shape and jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(
            f"y: expected one-hot labels of shape {list(output.shape)} as in output, got integer labels "
            f"{describe(y)}; use jax.nn.one_hot(y, {output.shape[-1]})"
        )
    if y.shape != output.shape:
        raise ValueError(f"y: expected shape {list(output.shape)} as in output, got {list(y.shape)}")
    return output, y


def _raise_precision(output: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    output, y = as_real("output", output), _as_pair(output, y)[1]
    dtype = raised(output, y)
    return output.astype(dtype), y.astype(dtype)


def _check_classes(output: Array) -> None:
    """Raises ValueError unless the axis of examples is followed by an axis of at least two classes."""
    if output.ndim < 2:
        raise ValueError(f"output: expected shape [batch, ..., classes], got {list(output.shape)}")
    if output.shape[-1] < 2:
        raise ValueError(f"output: expected at least two classes, got shape {list(output.shape)}")


def squared_error(output: ArrayLike, y: ArrayLike) -> Float[Array, " batch"]:
    """Computes the squared error, summed over the outputs, without a factor of 1/2 or 1/n.

    `l = sum_i (y_i - output_i)^2` for outputs and targets `[batch, ...]`; `[batch]`, in float32 or wider.

    Example:
      >>> squared_error(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 0.0]])).tolist()
      [5.0]
    """
    output, y = _raise_precision(output, y)
    if output.ndim == 0:
        raise ValueError("output: expected shape [batch, ...], got []")
    return jnp.sum(jnp.square(y - output), axis=tuple(range(1, y.ndim)))


def softmax_cross_entropy(output: ArrayLike, y: ArrayLike) -> Float[Array, " batch"]:
    """Computes the softmax cross-entropy of logits.

    `l = - sum_i y_i log softmax(output)_i`, in nats, summed over time steps if there are any.

    A logit of -infinity masks its class: `0 log 0` counts as 0, and the loss of a masked label is infinite.

    Args:
      output: logits, `[batch, ..., classes]`, of at least two classes.
      y: target probabilities or one-hot labels, `[batch, ..., classes]`.

    Returns:
      The loss of every example, `[batch]`, in float32 or wider.

    Example:
      >>> round(float(softmax_cross_entropy(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]]))[0]), 4)
      0.6931
    """
    output, y = _raise_precision(output, y)
    _check_classes(output)
    logs = jax.nn.log_softmax(output)
    logs = jnp.where((y == 0) & (logs == -jnp.inf), 0, logs)
    return -jnp.sum(y * logs, axis=tuple(range(1, y.ndim)))


def _scores(output: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    """Returns 1 for every correct example, 0 for the others, NaN where undefined, and the labels."""
    output, y = _as_pair(output, y)
    _check_classes(output)
    if 0 in output.shape:
        raise ValueError(f"output: expected at least one example, got shape {list(output.shape)}")
    labels = jnp.argmax(y, axis=-1)
    is_label = y == jnp.max(y, axis=-1, keepdims=True)
    undefined = jnp.isnan(output).any(axis=-1) | (jnp.sum(is_label, axis=-1) != 1)
    correct = (jnp.argmax(output, axis=-1) == labels).astype(raised(output))
    return jnp.where(undefined, jnp.nan, correct).ravel(), labels.ravel()


def accuracy(output: ArrayLike, y: ArrayLike) -> Float[Array, ""]:
    """Computes the fraction of examples whose largest output is that of the label, in 0..1.

    The first of several equal outputs counts as the largest. The result is NaN if any output is NaN, so a
    diverged model has no accuracy, or if a row of `y` has no unique largest entry, such as a row of zeros.

    Args:
      output: `[batch, ..., classes]`, of at least two classes.
      y: one-hot labels of the same shape, or scores whose largest entry marks the label.

    Example:
      >>> float(accuracy(jnp.array([[0.2, 0.8], [0.6, 0.4]]), jnp.array([[0.0, 1.0], [0.0, 1.0]])))
      0.5
    """
    return jnp.mean(_scores(output, y)[0])


def balanced_accuracy(output: ArrayLike, y: ArrayLike) -> Float[Array, ""]:
    """Computes the accuracy within each class, averaged over the classes that occur.

    `mean_c (correct examples of class c) / (examples of class c)`. The arguments are those of `accuracy`, and
    the result is NaN in the same cases.

    Example:
      >>> y = jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
      >>> float(balanced_accuracy(jnp.array([[2.0, 1.0]] * 4), y))
      0.5
    """
    y = as_array("y", y)
    scores, labels = _scores(output, y)
    of_class = jax.nn.one_hot(labels, y.shape[-1] if y.ndim else 0, dtype=scores.dtype)
    counts = jnp.sum(of_class, axis=0)
    recall = jnp.sum(scores[:, None] * of_class, axis=0) / jnp.maximum(counts, 1)
    return jnp.sum(recall) / jnp.sum(counts > 0, dtype=scores.dtype)
