"""Labelled images as they are stored, and how they become splits of scaled inputs and one-hot targets."""

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
    """Images and the class of each, as stored."""

    images: Shaped[np.ndarray, "n ..."]
    labels: Shaped[np.ndarray, " n"]


def from_extra(module: str, expected: str) -> Any:
    """Imports a module that comes with the extra `experiments`, or raises an ImportError that says so."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        remedy = "pip install 'lax_learning[experiments]'"
        raise ImportError(f"{expected}, got none ({error}); {remedy}") from error


def check_pairs(digits: Digits, images_at: Any, labels_at: Any, image: str = "image") -> Digits:
    """Returns the digits; raises ValueError unless there is an image, and a label for each."""
    images, labels = digits
    if labels.shape != images.shape[:1]:
        expected = f"expected {len(images)} labels, one an {image}"
        raise ValueError(f"{labels_at}: {expected}, got shape {labels.shape}")
    if len(images) == 0:
        raise ValueError(f"{images_at}: expected at least one image, got empty data")
    return digits


def check_digits(digits: Digits, where: str) -> Digits:
    """Returns the digits; raises ValueError unless they can be MNIST's.

    >>> check_digits(Digits(np.zeros((2, 28, 28), np.uint8), np.array([3, 12], np.uint8)), "my folder")
    Traceback (most recent call last):
    ValueError: my folder: expected labels in 0 .. 9, got 12
    """
    images, labels = digits
    if images.ndim != 3 or images.shape[1:] != IMAGE_SHAPE:
        raise ValueError(f"{where}: expected images of shape (n, 28, 28), got {images.shape}")
    check_pairs(digits, where, where)
    if labels.max() >= NUM_CLASSES:
        raise ValueError(f"{where}: expected labels in 0 .. {NUM_CLASSES - 1}, got {labels.max()}")
    return digits


def sort_digits(digits: Digits) -> Digits:
    """Sorts digits by their pixels, then label: tfds stores them shuffled, and all sources are to agree.

    >>> images = np.stack([np.full((28, 28), grey, np.uint8) for grey in (9, 0, 5)])
    >>> sort_digits(Digits(images, np.array([1, 2, 3], np.uint8))).labels
    array([2, 3, 1], dtype=uint8)
    """
    images, labels = digits
    rows = np.concatenate([images.reshape(len(images), -1), labels[:, None]], axis=1)
    order = np.argsort(rows.view(f"S{rows.shape[1]}").ravel())
    return Digits(images[order], labels[order])


def check_file_key(key: Any) -> None:
    """Raises unless `key` is a key with a value: files cannot be split by a traced one."""
    check_key("key", key)
    if isinstance(key, Tracer):
        raise TypeError(
            "key: expected one with a value, got a traced one; read the images outside of jit and vmap, and "
            "pass the splits in as arguments"
        )


def random_order(key: Key, number: int) -> Integer[np.ndarray, " n"]:
    """Returns a permutation of `0 .. number - 1`."""
    return np.asarray(jax.random.permutation(key, number))


def dataset(digits: Digits, chosen: Integer[np.ndarray, " m"], num_classes: int = NUM_CLASSES) -> Dataset:
    """Returns the chosen examples: bytes divided by 255, other values as they are, and one-hot labels."""
    x = digits.images[chosen].reshape(len(chosen), -1)
    x = x.astype(np.float32) / np.float32(255 if x.dtype == np.uint8 else 1)
    return Dataset(x, one_hot(digits.labels[chosen], num_classes))


def random_splits(key: Key, train: Digits, test: Digits, num_classes: int, where: Any) -> Splits:
    """Returns the splits, each in random order: a sixth of the training images is for validation."""
    num_validation = len(train.labels) // 6
    if num_validation == 0:
        raise ValueError(f"{where}: expected at least 6 training images, got {len(train.labels)}")
    train_key, test_key = jax.random.split(key)
    validation, rest = np.split(random_order(train_key, len(train.labels)), [num_validation])
    of_test = random_order(test_key, len(test.labels))
    parts = (train, rest), (train, validation), (test, of_test)
    return Splits(*(dataset(part, chosen, num_classes) for part, chosen in parts))
