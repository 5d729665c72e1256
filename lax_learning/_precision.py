"""Where numbers are summed or subtracted, half precision is raised to float32."""

from typing import Any

import jax
import jax.numpy as jnp


def raised(*values: Any) -> jnp.dtype:
    """The dtype of the values taken together, float32 or wider, also under strict dtype promotion."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(jnp.result_type(*values), jnp.float32)
