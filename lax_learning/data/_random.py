"""Problems drawn from a key: points labelled by a plane or a random network, and a planted teacher."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from lax_learning._checks import check_count, check_floating_dtype, check_key, check_memory, check_shapes
from lax_learning._layers import as_layers
from lax_learning._precision import raised, widened
from lax_learning.data.types import Dataset, Splits, drawn_splits
from lax_learning.types import Key, Params

SIZES = 7_500, 0, 2_500


def half_space(
    key: Key, num_features: int = 16, *, sizes: Sequence[int] = SIZES, dtype: DTypeLike = jnp.float32
) -> Splits:
    """Draws a random half-space: is a point on the positive side of a random vector?

    `x, v ~ U(-1, 1)^d`, `y = one_hot(v . x > 0)`

    A pure function of the key: problems of many seeds come from `jax.vmap`.

    Args:
      key: chooses the vector and the points.
      num_features: dimension d.
      sizes: numbers of training, validation and test points.
      dtype: of x and y.

    Returns:
      Splits of `x [points, features]` and `y [points, 2]`.

    Example:
      >>> half_space(jax.random.key(0), 16, sizes=(30, 0, 10)).train.x.shape
      (30, 16)

    References:
      Cristian et al., Learning with plasticity rules, https://openreview.net/forum?id=XEyElxd9zji, 2020.
    """
    check_drawn(key, dtype, num_features=num_features)
    vector_key, key = jax.random.split(key)
    vector = widened(jax.random.uniform(vector_key, (num_features,), dtype, -1, 1))
    return _uniform_splits(key, num_features, lambda x: (x @ vector > 0).astype(jnp.int32), sizes, dtype)


def relu_net(
    key: Key,
    num_features: int = 16,
    *,
    num_units: int = 1_000,
    sizes: Sequence[int] = SIZES,
    dtype: DTypeLike = jnp.float32,
) -> Splits:
    """Draws points labelled by the larger of two random read-outs of `num_units` random ReLU units.

    `x, W, V ~ U(-1, 1)`, `y = one_hot(argmax(relu(x W) V))`; the two classes are in general not equally
    frequent. Other arguments and the result are those of `half_space`, from the same paper.

    Example:
      >>> relu_net(jax.random.key(0), 16, num_units=50, sizes=(30, 0, 10)).test.y.shape
      (10, 2)
    """
    check_drawn(key, dtype, num_features=num_features, num_units=num_units)
    w_key, v_key, key = jax.random.split(key, 3)
    w = widened(jax.random.uniform(w_key, (num_features, num_units), dtype, -1, 1))
    v = widened(jax.random.uniform(v_key, (num_units, 2), dtype, -1, 1))

    def label(x: Array) -> Array:
        return jnp.argmax(jax.nn.relu(x @ w) @ v, axis=-1)

    return _uniform_splits(key, num_features, label, sizes, dtype)


def check_drawn(key: Key | None, dtype: DTypeLike, **counts: int) -> None:
    """Raises unless arrays of these sizes can be drawn from a key."""
    if key is not None:
        check_key("key", key)
    check_floating_dtype("dtype", dtype)
    for name, count in counts.items():
        check_count(name, count)
    check_memory(", ".join(counts), [tuple(counts.values())], dtype)


def _uniform_splits(
    key: Key, num_features: int, label: Callable[[Array], Array], sizes: Sequence[int], dtype: DTypeLike
) -> Splits:
    """Points `x ~ U(-1, 1)^d` with `y = one_hot(label(x))` of two classes."""

    def draw(number: int) -> tuple[Array, Array]:
        x = jax.random.uniform(key, (number, num_features), dtype, -1, 1)
        return x, jax.nn.one_hot(label(widened(x)), 2, dtype=dtype)

    return drawn_splits(draw, sizes, num_features, dtype)


class Planted(NamedTuple):
    """A problem without end: fresh examples come from a teacher.

    Fields:
      init: `key -> teacher`, `({"w": [features, units]}, {"w": [units, 1]})`: params of
        `mlp((features, units, 1), b_init=None)`.
      sample: `(key, teacher, num_examples) -> Dataset` of `x [examples, features]` and `y [examples, 1]`.
    """

    init: Callable[[Key], Params]
    sample: Callable[[Key, Params, int], Dataset]


def planted(num_features: int = 50, num_units: int = 10, *, dtype: DTypeLike = jnp.float32) -> Planted:
    """Points on the unit sphere and the output of a random ReLU network of a few units.

    `y = sum_i c_i relu(w_i . x)`, `x` uniform on the unit sphere; `c_i ~ U(-1, 1) / sqrt(units)`, `w_i` of
    random direction with `|c_i| |w_i| = 1`

    Both functions are pure and made for the body of a scan: no data are held.

    Args:
      num_features: dimension of x.
      num_units: number of units of the teacher.
      dtype: of teacher, x and y.

    Example:
      >>> problem = planted(8, 3)
      >>> teacher = problem.init(jax.random.key(0))
      >>> problem.sample(jax.random.key(1), teacher, 5).y.shape
      (5, 1)

    References:
      Rotskoff et al., Global convergence of neuron birth-death dynamics, https://arxiv.org/abs/1902.01843,
      2019.
    """
    check_drawn(None, dtype, num_features=num_features, num_units=num_units)

    def init(key: Key) -> Params:
        check_key("key", key)
        w_key, c_key, sign_key = jax.random.split(key, 3)
        size = (1 - jax.random.uniform(c_key, (num_units,))) / num_units**0.5  # never 0
        w = jax.random.normal(w_key, (num_features, num_units))
        w = w / (jnp.linalg.norm(w, axis=0) * size)
        c = size * jax.random.rademacher(sign_key, (num_units,), size.dtype)
        return {"w": w.astype(dtype)}, {"w": c[:, None].astype(dtype)}

    def sample(key: Key, teacher: Params, num_examples: int) -> Dataset:
        check_key("key", key)
        check_count("num_examples", num_examples)
        first, second = as_layers("teacher", teacher, 2)
        shapes = [(num_features, num_units), (num_units, 1)]
        check_shapes(["teacher[0]['w']", "teacher[1]['w']"], [first["w"], second["w"]], shapes)
        # Squares of half precision would leave its range, and their sum its digits.
        x = jax.random.normal(key, (num_examples, num_features), raised(jnp.dtype(dtype)))
        x = (x / jnp.linalg.norm(x, axis=-1, keepdims=True)).astype(dtype)
        wide, inner, outer = widened((x, first["w"], second["w"]))
        return Dataset(x, (jax.nn.relu(wide @ inner) @ outer).astype(dtype))

    return Planted(init, sample)
