"""Labelled examples as the rules take them, and their three splits."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float32, Shaped

from lax_learning._checks import as_array, as_sizes, check_count, check_integers, check_memory, describe


class Dataset(NamedTuple):
    """Inputs and their targets, example by example, in the shapes and types that `value_and_grad` takes.

    Fields:
      x: array or pytree of arrays with a leading axis of examples, such as `[n, features]`.
      y: likewise, such as `[n, classes]`, or a dict of targets and weights of examples.
    """

    x: Any
    y: Any


class Splits(NamedTuple):
    """Examples to learn from, to choose hyper-parameters on, and to report on; none is in two of them."""

    train: Dataset
    validation: Dataset
    test: Dataset


def drawn_splits(
    draw: Callable[[int], tuple[Array, Array]], sizes: Sequence[int], length: int, dtype: Any = jnp.float32
) -> Splits:
    """Cuts splits of given sizes from `draw(number) -> (x, y)`, whose examples have `length` numbers."""
    expected = "numbers of training, validation and test examples"
    sizes = as_sizes("sizes", sizes, expected, minimum=0)
    if len(sizes) != 3 or sum(sizes) == 0:
        raise ValueError(f"sizes: expected {expected}, got {sizes}")
    check_memory("sizes", [(sum(sizes), length)], dtype)
    ends = [sizes[0], sizes[0] + sizes[1]]
    parts = (jnp.split(array, ends) for array in draw(sum(sizes)))
    return Splits(*(Dataset(*part) for part in zip(*parts, strict=True)))


def check_splits(data: Any) -> Dataset:
    """Returns the training data as JAX arrays; raises unless `data` are `Splits` that fit.

    Validation and test may be None.
    """
    if not isinstance(data, Splits):
        expected = "Splits, such as Splits(train=Dataset(x, y), validation=None, test=None)"
        raise TypeError(f"data: expected {expected}, got {describe(data)}")
    for name, part in data._asdict().items():
        if part is not None:
            _check_dataset(f"data.{name}", part)
    sizes = [np.shape(leaf)[0] for leaf in jax.tree.leaves(data.train)]
    if not sizes or sizes[0] == 0:
        got = "none" if data.train is None else 0
        raise ValueError(f"data.train: expected at least one example, got {got}")
    return jax.tree.map(jnp.asarray, data.train)


def _check_dataset(name: str, data: Any) -> None:
    if not isinstance(data, Dataset):
        raise TypeError(f"{name}: expected a Dataset(x, y), got {describe(data)}")
    numbers: dict[str, set[int]] = {"x": set(), "y": set()}
    for field, tree in data._asdict().items():
        for path, leaf in jax.tree.leaves_with_path(tree, is_leaf=lambda leaf: leaf is None):
            at = f"{name}.{field}{jax.tree_util.keystr(path)}"
            is_plain = type(leaf) is np.ndarray and leaf.dtype.kind in "biuf"
            is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            array = leaf if is_plain or is_key else as_array(at, leaf)
            check_integers(at, leaf)
            if array.ndim == 0:
                raise ValueError(f"{at}: expected one row an example, got {describe(array)}")
            numbers[field].add(array.shape[0])
    if len(numbers["x"] | numbers["y"]) > 1:
        x, y = (", ".join(map(str, sorted(numbers[field]))) for field in ("x", "y"))
        raise ValueError(f"{name}: expected as many y as x, got {y} and {x}")


def one_hot(labels: Shaped[ArrayLike, "*shape"], num_classes: int) -> Float32[np.ndarray, "*shape classes"]:
    """Class numbers as one-hot targets.

        y[..., c] = 1 if labels[...] == c else 0

    Args:
        labels: integers in 0 .. num_classes - 1, of any shape; under `jax.jit` take `jax.nn.one_hot`.
        num_classes: length of the new last axis.

    >>> one_hot(np.array([2, 0]), 3)
    array([[0., 0., 1.],
           [1., 0., 0.]], dtype=float32)
    """
    check_count("num_classes", num_classes)
    if isinstance(labels, Tracer):
        raise TypeError(f"labels: expected integers outside of jit, got traced {describe(labels)}")
    try:
        labels = np.asarray(labels)
    except (TypeError, ValueError) as error:
        raise ValueError(f"labels: expected integers, got {describe(labels)}") from error
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels: expected integers, got dtype {labels.dtype}")
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if outside.size:
        raise ValueError(f"labels: expected values in 0 .. {num_classes - 1}, got {outside[0]}")
    check_memory("num_classes", [(*labels.shape, num_classes)], np.int64)
    return (labels[..., None] == np.arange(num_classes)).astype(np.float32)
