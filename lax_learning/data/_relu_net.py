"""Points labelled by a random network of ReLU units (Cristian et al., 2020)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lax_learning._checks import check_count, check_floating_dtype, check_key, check_memory
from lax_learning._precision import widened
from lax_learning.data._uniform import uniform_splits
from lax_learning.data.types import Splits
from lax_learning.types import Key


def relu_net(
    key: Key,
    num_features: int = 16,
    *,
    num_units: int = 1_000,
    sizes: Sequence[int] = (7_500, 0, 2_500),
    dtype: DTypeLike = jnp.float32,
) -> Splits:
    """Draws points and the larger of two random read-outs of random ReLU units.

    `x, W, V ~ U(-1, 1)`, `y = one_hot(argmax(relu(x W) V))`

    A pure function of the key: problems of many seeds come from `jax.vmap`. The two classes are in general
    not equally frequent.

    Args:
      key: chooses the network and the points.
      num_features: dimension of x.
      num_units: number of ReLU units.
      sizes: number of training, validation and test points.
      dtype: of x and y.

    Returns:
      Splits of `x [points, features]` and `y [points, 2]`.

    Example:
      >>> relu_net(jax.random.key(0), 16, num_units=50, sizes=(30, 0, 10)).test.y.shape
      (10, 2)
    """
    check_key("key", key)
    check_floating_dtype("dtype", dtype)
    check_count("num_features", num_features)
    check_count("num_units", num_units)
    check_memory("num_features", [(num_features, num_units)], dtype)
    w_key, v_key, key = jax.random.split(key, 3)
    w = jax.random.uniform(w_key, (num_features, num_units), dtype, -1, 1)
    v = jax.random.uniform(v_key, (num_units, 2), dtype, -1, 1)
    w, v = widened((w, v))

    def label(x: jax.Array) -> jax.Array:
        return jnp.argmax(jax.nn.relu(x @ w) @ v, axis=-1)

    return uniform_splits(key, num_features, label, sizes, dtype)
