"""Points on the two sides of a random plane through the origin (Cristian et al., 2020)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lax_learning._checks import check_count, check_floating_dtype, check_key, check_memory
from lax_learning._precision import widened
from lax_learning.data._uniform import uniform_splits
from lax_learning.data.types import Splits
from lax_learning.types import Key


def half_space(
    key: Key,
    num_features: int = 16,
    *,
    sizes: Sequence[int] = (7_500, 0, 2_500),
    dtype: DTypeLike = jnp.float32,
) -> Splits:
    """A random half-space: is a point on the positive side of a random vector?

    `x, v ~ U(-1, 1)^d`, `y = one_hot(v . x > 0)`

    A pure function of the key: problems of many seeds come from `jax.vmap`.

    Args:
      key: chooses the vector and the points.
      num_features: dimension d.
      sizes: number of training, validation and test points.
      dtype: of x and y.

    Returns:
      Splits of `x [points, features]` and `y [points, 2]`.

    Example:
      >>> half_space(jax.random.key(0), 16, sizes=(30, 0, 10)).train.x.shape
      (30, 16)

    References:
      Cristian, Dabagia, Papadimitriou, Vempala, Learning with plasticity rules: generalization and
      robustness, https://openreview.net/forum?id=XEyElxd9zji, 2020.
    """
    check_key("key", key)
    check_floating_dtype("dtype", dtype)
    check_count("num_features", num_features)
    check_memory("num_features", [(num_features,)], dtype)
    vector_key, key = jax.random.split(key)
    vector = widened(jax.random.uniform(vector_key, (num_features,), dtype, -1, 1))

    def label(x: jax.Array) -> jax.Array:
        return (x @ vector > 0).astype(jnp.int32)

    return uniform_splits(key, num_features, label, sizes, dtype)
