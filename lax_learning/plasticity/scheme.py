"""Changes of synapses by the entry of their table that they read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from lax_learning._checks import check_choice, check_positive


class Update(NamedTuple):
    """Effect of a change on a weight.

    Fields:
      start: the weight at the start of an episode.
      apply: `(w, change) -> w`.
      summand: `change -> ` what adds up over changes: changes whose summands differ by a small sum `d`
        leave `apply(w, d)` where they left `w`.
    """

    start: float
    apply: Callable[[Array, Array], Array]
    summand: Callable[[Array], Array]


def _log_factor(factor: Array) -> Array:
    """`log |factor|`; 0 for a factor of 0, after which the weight stays at 0."""
    return jnp.log(jnp.abs(jnp.where(factor == 0, 1, factor)))


UPDATES = {
    "additive": Update(0.0, lambda w, change: w + change, lambda change: change),
    "multiplicative": Update(1.0, lambda w, change: w * (1 + change), lambda change: _log_factor(1 + change)),
}


@dataclass(frozen=True)
class Scheme:
    """Change of synapses by the entry `beta` of their table that they read.

    additive: `w <- w + step_size beta mask`; multiplicative: `w <- w (1 + step_size beta mask)`

    Fields:
      step_size: > 0; may be traced.
      update: "additive", weights start an episode at 0; or "multiplicative", they start at 1.
      samples: "every", or only the "misclassified" ones.
      rows: "all" output units, or "two", that of the predicted and that of the true label.
    """

    step_size: Any = 0.01
    update: str = "additive"
    samples: str = "every"
    rows: str = "all"

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)
        check_choice("update", self.update, UPDATES)
        check_choice("samples", self.samples, ("every", "misclassified"))
        check_choice("rows", self.rows, ("all", "two"))
