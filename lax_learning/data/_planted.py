"""A planted problem: a student learns the function of a small teacher (Rotskoff et al., 2019)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lax_learning._checks import (
    as_layers,
    check_count,
    check_floating_dtype,
    check_key,
    check_memory,
    check_shapes,
)
from lax_learning._precision import raised, widened
from lax_learning.data.types import Dataset
from lax_learning.types import Key, Params


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

    Returns:
      The problem.

    Example:
      >>> problem = planted(8, 3)
      >>> teacher = problem.init(jax.random.key(0))
      >>> problem.sample(jax.random.key(1), teacher, 5).y.shape
      (5, 1)

    References:
      Rotskoff, Jelassi, Bruna, Vanden-Eijnden, Global convergence of neuron birth-death dynamics,
      https://arxiv.org/abs/1902.01843, 2019.
    """
    check_count("num_features", num_features)
    check_count("num_units", num_units)
    check_floating_dtype("dtype", dtype)
    check_memory("num_features, num_units", [(num_features, num_units)], dtype)

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
