"""Where numbers are summed or subtracted, half precision is raised to float32."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def raised(*values: Any) -> jnp.dtype:
    """The dtype of the values taken together, float32 or wider, also under strict dtype promotion."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(jnp.result_type(*values), jnp.float32)


def promoted(*values: Any) -> tuple[Array, ...]:
    """The values in the dtype that they have together, also under strict dtype promotion."""
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*values)
    return tuple(jnp.asarray(value, dtype) for value in values)
