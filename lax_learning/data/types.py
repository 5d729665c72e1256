"""Labelled examples in the form that rules take, and their three splits."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float32, Shaped

from lax_learning import _checks as checks
from lax_learning._arrays import by_path


class Dataset(NamedTuple):
    """Inputs and targets, in the shapes and dtypes that `value_and_grad` takes.

    Fields:
      x: array or pytree of arrays with a leading axis of examples, such as `[n, features]`.
      y: likewise, such as `[n, classes]`, or a dict of targets and example weights.
    """

    x: Any
    y: Any


class Splits(NamedTuple):
    """Disjoint sets of examples: for training, for the choice of hyper-parameters, and for final results."""

    train: Dataset
    validation: Dataset
    test: Dataset


def drawn_splits(
    draw: Callable[[int], tuple[Array, Array]], sizes: Sequence[int], length: int, dtype: Any = jnp.float32
) -> Splits:
    """Draws splits of given sizes by `draw(number) -> (x, y)`, whose examples have `length` numbers."""
    expected = "numbers of training, validation and test examples"
    sizes = checks.as_sizes("sizes", sizes, expected, minimum=0)
    if len(sizes) != 3 or sum(sizes) == 0:
        raise ValueError(f"sizes: expected {expected}, got {sizes}")
    checks.check_memory("sizes", [(sum(sizes), length)], dtype)
    ends = [sizes[0], sizes[0] + sizes[1]]
    parts = (jnp.split(array, ends) for array in draw(sum(sizes)))
    return Splits(*(Dataset(*part) for part in zip(*parts, strict=True)))


def check_splits(data: Any) -> Dataset:
    """Returns the training data as JAX arrays; raises unless `data` are valid `Splits`.

    Validation and test may be None.
    """
    expected = "Splits, such as Splits(train=Dataset(x, y), validation=None, test=None)"
    checks.check_instance("data", data, Splits, expected)
    for name, part in data._asdict().items():
        if part is not None:
            _check_dataset(f"data.{name}", part)
    sizes = [np.shape(leaf)[0] for leaf in jax.tree.leaves(data.train)]
    if not sizes or sizes[0] == 0:
        got = "none" if data.train is None else 0
        raise ValueError(f"data.train: expected at least one example, got {got}")
    return jax.tree.map(jnp.asarray, data.train)


def _check_dataset(name: str, data: Any) -> None:
    checks.check_instance(name, data, Dataset, "a Dataset(x, y)")

    def number_of_rows(at: str, leaf: Any) -> int:
        is_plain = type(leaf) is np.ndarray and leaf.dtype.kind in "biuf"
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = leaf if is_plain or is_key else checks.as_array(at, leaf)
        checks.check_integers(at, leaf)
        if array.ndim == 0:
            raise ValueError(f"{at}: expected one row per example, got {checks.describe(array)}")
        return array.shape[0]

    numbers = by_path(name, number_of_rows, data, is_leaf=lambda leaf: leaf is None)
    x, y = (set(jax.tree.leaves(of_field)) for of_field in numbers)
    if len(x | y) > 1:
        got = " and ".join(", ".join(map(str, sorted(of_field))) for of_field in (y, x))
        raise ValueError(f"{name}: expected as many y as x, got {got}")


def one_hot(labels: Shaped[ArrayLike, "*shape"], num_classes: int) -> Float32[np.ndarray, "*shape classes"]:
    """Converts class labels, integers in 0 .. num_classes - 1 of any shape, to one-hot targets.

        y[..., c] = 1 if labels[...] == c else 0

    Under `jax.jit`, use `jax.nn.one_hot`.

    >>> one_hot(np.array([2, 0]), 3)
    array([[0., 0., 1.],
           [1., 0., 0.]], dtype=float32)
    """
    checks.check_count("num_classes", num_classes)
    if isinstance(labels, Tracer):
        raise TypeError(f"labels: expected integers outside of jit, got traced {checks.describe(labels)}")
    try:
        labels = np.asarray(labels)
    except (TypeError, ValueError) as error:
        raise ValueError(f"labels: expected integers, got {checks.describe(labels)}") from error
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels: expected integers, got dtype {labels.dtype}")
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if outside.size:
        raise ValueError(f"labels: expected values in 0 .. {num_classes - 1}, got {outside[0]}")
    checks.check_memory("num_classes", [(*labels.shape, num_classes)], np.int64)
    return (labels[..., None] == np.arange(num_classes)).astype(np.float32)
