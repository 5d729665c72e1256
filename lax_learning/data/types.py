"""Labelled examples as the rules take them, and their three splits."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Float32, Shaped


class Dataset(NamedTuple):
    """Inputs and their targets, example by example, in the shapes and types that `value_and_grad` takes."""

    x: Float[Array | np.ndarray, "n features"]
    y: Float[Array | np.ndarray, "n classes"]


class Splits(NamedTuple):
    """Examples to learn from, to choose hyper-parameters on, and to report on; none is in two of them."""

    train: Dataset
    validation: Dataset
    test: Dataset


def one_hot(labels: Shaped[np.ndarray, "*shape"], num_classes: int) -> Float32[np.ndarray, "*shape classes"]:
    """Class numbers as one-hot targets.

        y[..., c] = 1 if labels[...] == c else 0

    Args:
        labels: integers in 0 .. num_classes - 1, of any shape.
        num_classes: length of the new last axis.

    Returns:
        float32, one axis more than `labels`.

    Raises:
        ValueError: labels are not integers, or one is outside 0 .. num_classes - 1.

    >>> one_hot(np.array([2, 0]), 3)
    array([[0., 0., 1.],
           [1., 0., 0.]], dtype=float32)
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels: expected integers, got dtype {labels.dtype}")
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if outside.size:
        raise ValueError(f"labels: expected values in 0 .. {num_classes - 1}, got {outside[0]}")
    return np.eye(num_classes, dtype=np.float32)[labels]
