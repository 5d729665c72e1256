"""Labelled images as stored, and their conversion to splits of scaled inputs and one-hot targets."""

import importlib
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Integer, Shaped

from lax_learning._checks import check_key
from lax_learning.data.types import Dataset, Splits, one_hot
from lax_learning.types import Key

IMAGE_SHAPE = (28, 28)
NUM_CLASSES = 10


class Digits(NamedTuple):
    """Images and their class labels, as stored."""

    images: Shaped[np.ndarray, "n ..."]
    labels: Shaped[np.ndarray, " n"]


def from_extra(module: str, expected: str) -> Any:
    """Imports a module of the extra `experiments`; raises an ImportError that names the extra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        remedy = "pip install 'lax_learning[experiments]'"
        raise ImportError(f"{expected}, got none ({error}); {remedy}") from error


def check_file_key(key: Any) -> None:
    """Raises unless `key` is a concrete key, as files cannot be split by a traced one."""
    check_key("key", key)
    if isinstance(key, Tracer):
        raise TypeError(
            "key: expected a concrete key, got a traced one; read the images outside of jit and vmap, and "
            "pass the splits in as arguments"
        )


def random_order(key: Key, number: int) -> Integer[np.ndarray, " n"]:
    """Returns a permutation of `0 .. number - 1`."""
    return np.asarray(jax.random.permutation(key, number))


def dataset(digits: Digits, chosen: Integer[np.ndarray, " m"], num_classes: int = NUM_CLASSES) -> Dataset:
    """Returns the chosen examples with one-hot labels; bytes are divided by 255, other values kept."""
    x = digits.images[chosen].reshape(len(chosen), -1)
    x = x.astype(np.float32) / np.float32(255 if x.dtype == np.uint8 else 1)
    return Dataset(x, one_hot(digits.labels[chosen], num_classes))


def random_splits(key: Key, train: Digits, test: Digits, num_classes: int, where: Any) -> Splits:
    """Returns splits in random order; a sixth of the training images is for validation."""
    num_validation = len(train.labels) // 6
    if num_validation == 0:
        raise ValueError(f"{where}: expected at least 6 training images, got {len(train.labels)}")
    train_key, test_key = jax.random.split(key)
    validation, rest = np.split(random_order(train_key, len(train.labels)), [num_validation])
    of_test = random_order(test_key, len(test.labels))
    parts = (train, rest), (train, validation), (test, of_test)
    return Splits(*(dataset(part, chosen, num_classes) for part, chosen in parts))
