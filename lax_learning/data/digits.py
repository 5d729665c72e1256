"""MNIST's digits as they are stored: uint8 images and labels, before scaling and one-hot."""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

IMAGE_SHAPE = (28, 28)
NUM_CLASSES = 10


class Digits(NamedTuple):
    """Grey values 0 .. 255 and the class of each image."""

    images: UInt8[np.ndarray, "n height width"]
    labels: UInt8[np.ndarray, " n"]


def check_digits(digits: Digits, where: str) -> Digits:
    """The digits themselves, if they can be MNIST's.

    Raises:
        ValueError: there are no images, they are not 28 x 28, there is not one label an image, or a label
            is above 9. The message begins with `where`, the place they were read from.

    >>> check_digits(Digits(np.zeros((2, 28, 28), np.uint8), np.array([3, 12], np.uint8)), "my folder")
    Traceback (most recent call last):
    ValueError: my folder: expected labels in 0 .. 9, got 12
    """
    images, labels = digits
    if images.ndim != 3 or images.shape[1:] != IMAGE_SHAPE:
        raise ValueError(f"{where}: expected images of shape (n, 28, 28), got {images.shape}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{where}: expected {len(images)} labels, one an image, got shape {labels.shape}")
    if len(images) == 0:
        raise ValueError(f"{where}: expected at least one image, got empty data")
    if labels.max() >= NUM_CLASSES:
        raise ValueError(f"{where}: expected labels in 0 .. {NUM_CLASSES - 1}, got {labels.max()}")
    return digits


def sort_digits(digits: Digits) -> Digits:
    """The digits in lexicographic order of their pixels, then label.

    tfds stores examples shuffled, other sources do not. From this one order on, all give the same arrays.

    >>> images = np.stack([np.full((28, 28), grey, np.uint8) for grey in (9, 0, 5)])
    >>> sort_digits(Digits(images, np.array([1, 2, 3], np.uint8))).labels
    array([2, 3, 1], dtype=uint8)
    """
    images, labels = digits
    rows = np.concatenate([images.reshape(len(images), -1), labels[:, None]], axis=1)
    order = np.argsort(rows.view(f"S{rows.shape[1]}").ravel())
    return Digits(images[order], labels[order])
