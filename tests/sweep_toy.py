"""A toy to sweep over: `python -m experiments.sweep --experiment tests.sweep_toy`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.sweeping import Program, Sweepable

CHUNKS = 3


def toy(traced: Callable[[], None] = lambda: None) -> Sweepable:
    """Scores `-(log10(learning_rate) + 2)^2 - penalty - seed's noise`, reached in chunks of a third.

    What is square diverges in the last. `traced` is called whenever a program is traced.
    """

    def make(static: Mapping[str, Any]) -> Program:
        def init(key: jax.Array, values: dict[str, jax.Array], shared: Any) -> Any:
            goal = -jnp.square(jnp.log10(values["learning_rate"]) + 2) - values["penalty"]
            return {"goal": goal + 0.01 * jax.random.normal(key) + shared, "key": key}

        def advance(carry: Any, number: Any, shared: Any) -> tuple[Any, jax.Array]:
            traced()
            diverged = (static["kind"] == "square") & (number + 1 == CHUNKS)
            score = static["width"] * carry["goal"] * (number + 1) / CHUNKS
            return carry, jnp.where(diverged, jnp.nan, score)

        return Program(init, advance, CHUNKS, jnp.zeros(()))

    return Sweepable(
        "minus the distance", "maximize", {"learning_rate": 0.1, "penalty": 0.0},
        {"width": 1, "kind": ("round", "square"), "data": "sample"}, make,
    )  # fmt: skip


SWEEPABLE = toy()
