"""Uniform points with labels by a function, in splits."""

import itertools
from collections.abc import Callable, Sequence

import jax
from jax.typing import DTypeLike
from jaxtyping import Array

from lax_learning._checks import as_tuple, check_count, check_memory
from lax_learning._precision import widened
from lax_learning.data.types import Dataset, Splits
from lax_learning.types import Key


def uniform_splits(
    key: Key, num_features: int, label: Callable[[Array], Array], sizes: Sequence[int], dtype: DTypeLike
) -> Splits:
    """Points `x ~ U(-1, 1)^d` with `y = one_hot(label(x))` of two classes."""
    sizes = as_tuple("sizes", sizes, "numbers of training, validation and test points")
    if len(sizes) != 3:
        raise ValueError(f"sizes: expected numbers of training, validation and test points, got {sizes}")
    for i, size in enumerate(sizes):
        check_count(f"sizes[{i}]", size, minimum=0)
    check_memory("sizes", [(sum(sizes), num_features)], dtype)
    x = jax.random.uniform(key, (sum(sizes), num_features), dtype, -1, 1)
    y = jax.nn.one_hot(label(widened(x)), 2, dtype=dtype)
    ends = list(itertools.accumulate(sizes))
    starts = [0, *ends[:-1]]
    return Splits(*(Dataset(x[a:b], y[a:b]) for a, b in zip(starts, ends, strict=True)))
