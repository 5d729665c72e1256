"""Adam with L2 weight decay, as PyTorch has it."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike

from lax_learning._checks import (
    as_floating,
    check_instance,
    check_not_negative,
    check_probability,
    check_same_structure,
    check_scalar,
)
from lax_learning._precision import raised
from lax_learning.types import Params


def adam_with_decay(
    learning_rate: ArrayLike, decay: ArrayLike = 0.0, b1: ArrayLike = 0.9, b2: ArrayLike = 0.999
) -> optax.GradientTransformation:
    """Adam as PyTorch has it: weight decay is part of the gradient, unlike in AdamW.

    `g <- g + decay w`, then `w <- w - learning_rate adam(g)`, moments in float32 or wider

    Args:
      learning_rate: of the step; a number that may be traced, as all others.
      decay: of the L2 penalty `decay / 2 |w|^2`, biases included.
      b1: decay of the mean gradient.
      b2: decay of the mean square.

    Returns:
      The optimiser, of optax.

    Raises:
      ValueError: for a negative learning rate or decay, or b1 or b2 outside 0..1 or 1.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer, w = adam_with_decay(0.1, decay=0.5), jnp.array([2.0, -2.0])
      >>> [round(float(u), 3) for u in optimizer.update(jnp.zeros(2), optimizer.init(w), w)[0]]
      [-0.1, 0.1]
    """
    check_not_negative("learning_rate", learning_rate)
    check_not_negative("decay", decay)
    check_scalar("learning_rate", learning_rate)
    check_scalar("decay", decay)
    for name, value in (("b1", b1), ("b2", b2)):
        check_probability(name, value)
        check_scalar(name, value)
        if not isinstance(value, Tracer) and value == 1:
            raise ValueError(f"{name}: expected a number below 1, got {value!r}")
    # Plain numbers take the dtype of the moments.
    learning_rate, decay, b1, b2 = (
        value if isinstance(value, Tracer) else np.asarray(value).item()
        for value in (learning_rate, decay, b1, b2)
    )
    adam = optax.chain(
        optax.add_decayed_weights(cast(Array, decay)),
        optax.scale_by_adam(b1, b2),
        optax.scale_by_learning_rate(cast(Array, learning_rate)),
    )

    def init(params: Params) -> Any:
        return adam.init(_raised("params", params))

    def update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        if params is None:
            raise ValueError("params: expected those that the updates are for, got None")
        updates, params = _raised("updates", updates), _raised("params", params)
        check_same_structure(("updates", "params"), (updates, params))
        moments = state[1] if isinstance(state, tuple) and len(state) == 3 else None
        check_instance("state", moments, optax.ScaleByAdamState, "what init(params) returns")
        for name in ("mu", "nu"):
            check_same_structure((f"state[1].{name}", "params"), (getattr(moments, name), params))
        with jax.numpy_dtype_promotion("standard"):  # traced hyper-parameters have dtypes of their own
            updates, new = adam.update(updates, state, params)
        # Traced hyper-parameters may be wider than the moments: what a scan carries keeps its dtypes.
        return updates, jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), new, state)

    return optax.GradientTransformation(init, update)


def _raised(name: str, tree: Any) -> Any:
    def leaf_raised(path: tuple[Any, ...], leaf: Any) -> Array:
        leaf = as_floating(f"{name}{jax.tree_util.keystr(path)}", leaf)
        return leaf.astype(raised(leaf))

    return jax.tree_util.tree_map_with_path(leaf_raised, tree)
