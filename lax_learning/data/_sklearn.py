"""Digits that come with scikit-learn: small enough for tests on real images."""

import numpy as np

from lax_learning.data.digits import check_file_key, from_extra, random_order
from lax_learning.data.types import Dataset, Splits, one_hot
from lax_learning.types import Key


def sklearn_digits(key: Key) -> Splits:
    """The 1,797 digits of 8 x 8 pixels that come with scikit-learn: 1,203 to train on, 297 and 297 others.

        x = pixels / 16        y = one_hot(label)

    Args:
        key: chooses the splits and the order of their examples; not traced.

    Returns:
        Splits of `x` float32 [n, 64] in 0 .. 1 and `y` float32 [n, 10].

    Raises:
        ImportError: scikit-learn is not installed; it comes with `pip install 'lax_learning[experiments]'`.

    >>> import jax
    >>> splits = sklearn_digits(jax.random.key(0))
    >>> splits.train.x.shape, splits.test.y.shape
    ((1203, 64), (297, 10))
    """
    check_file_key(key)
    load_digits = from_extra("sklearn_digits", "sklearn.datasets").load_digits
    images, labels = map(np.asarray, load_digits(return_X_y=True))
    x, y = (images / 16).astype(np.float32), one_hot(labels, 10)
    validation, test, train = np.split(random_order(key, len(x)), [297, 594])
    return Splits(*(Dataset(x[chosen], y[chosen]) for chosen in (train, validation, test)))
