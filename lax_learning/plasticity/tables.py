"""Plasticity tables: the information that selects a synapse's entry, and the change by that entry."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from lax_learning import _checks as checks

_PLACE = "a function of (count [out], num_inputs [out])"


class Tables(NamedTuple):
    """The tables of a network; `meta_learn` learns them, and `transfer` fits them to another network.

    Fields:
      hidden: one table for all plastic hidden layers, or one per layer; empty without such layers.
      output: the table of the output layer.
    """

    hidden: tuple[Array, ...]
    output: Array


class Bins(NamedTuple):
    """Bins of the last axis of a table: how many inputs of a postsynaptic unit fired.

    Fields:
      size: `cap of the presynaptic layer -> number of bins`.
      place: `(count [out], num_inputs [out]) -> bin [out]`, from the number of each postsynaptic unit's
        inputs that fired and the number of its inputs. Bins outside the table raise an error when a network
        is made from this rule; in a pass, they are clamped to the nearest bin.
    """

    size: Callable[[int], int]
    place: Callable[[Array, Array], Array]


class TableRule(NamedTuple):
    """The information that selects a synapse's entry: `beta = table[pre, post, bin]`, without unused axes.

    `pre` and `post` are the codes of the presynaptic and postsynaptic units: whether the unit fired, or in
    a recurrent network its firing history; for an output unit, whether it is the label.

    Fields:
      reads_pre: whether the table has an axis for the presynaptic code.
      bins: the axis after the postsynaptic code; None for a table without it.
    """

    reads_pre: bool
    bins: Bins | None

    def rows(
        self,
        table: Float[Array, "..."],
        pre: Int[Array, " in"],
        post: Int[Array, " out"],
        mask: Bool[Array, "in out"],
    ) -> Float[Array, "codes out"]:
        """Returns `rows[p, j]`, the entry for synapses from presynaptic code `p` to unit `j`.

        There is only one row if the rule does not read the presynaptic code.
        """
        index = post
        if self.bins is not None:
            # A float32 product of zeros and ones: exact below 2^24, and faster than with integers.
            count = (pre > 0).astype(jnp.float32) @ mask.astype(jnp.float32)
            num_inputs = jnp.sum(mask, axis=0, dtype=jnp.int32)
            size = table.shape[-1]
            place = jnp.asarray(self.bins.place(count.astype(jnp.int32), num_inputs), jnp.int32)
            index = index * size + jnp.clip(place, 0, size - 1)
        return table.reshape(table.shape[0] if self.reads_pre else 1, -1)[:, index]


_COUNT = Bins(lambda cap: cap + 1, lambda count, num_inputs: count)
# 5 % bins, floor(20 count / num_inputs) in integers; a unit without inputs is in bin 0.
_PERCENT = Bins(lambda cap: 21, lambda count, num_inputs: 20 * count // jnp.maximum(num_inputs, 1))

pre_post = TableRule(True, None)
"""`table[pre fired, post fired]`; in the output layer, `table[pre fired, unit is the label]`: 2 x 2."""

pre_post_count = TableRule(True, _COUNT)
"""`table[pre fired, post fired, number of the unit's inputs that fired]`: 2 x 2 x (cap + 1)."""

pre_post_percent = TableRule(True, _PERCENT)
"""As `pre_post_count`, with the count as a share of the unit's inputs, in bins of 5 %: 2 x 2 x 21."""

post_count = TableRule(False, _COUNT)
"""`table[post fired, number of the unit's inputs that fired]`: 2 x (cap + 1)."""


def table_shape(rule: Any, cap: int, num_inputs: int) -> tuple[int, ...]:
    """Returns the table shape of a feed-forward layer; raises for an invalid rule."""
    checks.check_instance("rule", rule, TableRule, "a TableRule, such as pre_post")
    checks.check_flag("rule.reads_pre", rule.reads_pre)
    if not any(rule.bins is known for known in (None, _COUNT, _PERCENT)):
        checks.check_instance("rule.bins", rule.bins, Bins, "Bins or None")
        checks.check_function("rule.bins.size", rule.bins.size, "a function of the cap", 1)
        checks.check_function("rule.bins.place", rule.bins.place, _PLACE, None, None)
        num_bins = rule.bins.size(cap)
        checks.check_count(f"rule.bins.size({cap})", num_bins)
        _check_places(rule.bins, int(num_bins), cap, num_inputs)
    shape = (*((2,) if rule.reads_pre else ()), 2, *(() if rule.bins is None else (rule.bins.size(cap),)))
    checks.check_memory("rule", [shape])
    return shape


def _check_places(bins: Bins, num_bins: int, cap: int, num_inputs: int) -> None:
    """Raises unless bins are integers within the table; others would be clamped silently."""
    inputs, fired = np.linspace(0, num_inputs, 65, dtype=np.int32), np.linspace(0, cap, 1000, dtype=np.int32)
    of, count = (a.ravel() for a in np.meshgrid(inputs, fired, indexing="ij"))
    count = np.minimum(count, of)
    with jax.ensure_compile_time_eval():
        places = checks.as_array("rule.bins.place", bins.place(jnp.asarray(count), jnp.asarray(of)))
    if not jnp.issubdtype(places.dtype, jnp.integer):
        raise TypeError(f"rule.bins.place: expected integer bins, got {checks.describe(places)}")
    if places.shape not in ((), count.shape):
        raise ValueError(f"rule.bins.place: expected shape {[count.size]}, got {list(places.shape)}")
    if isinstance(places, Tracer):
        return
    places = np.broadcast_to(places, count.shape)
    outside = np.flatnonzero((places < 0) | (places >= num_bins))
    if outside.size:
        i = outside[0]
        raise ValueError(
            f"rule.bins.place: expected bins in 0 .. {num_bins - 1}, got {places[i]} "
            f"when {count[i]} of {of[i]} inputs fired"
        )


@dataclass(frozen=True)
class Scheme:
    """Change of a synapse by its table entry `beta`.

    additive: `w <- w + step_size beta mask`; multiplicative: `w <- w (1 + step_size beta mask)`

    Fields:
      step_size: size of the changes, > 0; may be traced.
      update: "additive", with weights that start an episode at 0, or "multiplicative", at 1.
      samples: update after "every" sample, or only after "misclassified" ones.
      rows: update "all" output units, or only "two": the predicted and the true label.
    """

    step_size: Any = 0.01
    update: Literal["additive", "multiplicative"] = "additive"
    samples: Literal["every", "misclassified"] = "every"
    rows: Literal["all", "two"] = "all"

    def __post_init__(self) -> None:
        checks.check_positive("step_size", self.step_size)
        checks.check_choice("update", self.update, ("additive", "multiplicative"))
        checks.check_choice("samples", self.samples, ("every", "misclassified"))
        checks.check_choice("rows", self.rows, ("all", "two"))

    @property
    def start(self) -> float:
        """Weight of a synapse at the start of an episode."""
        return 0.0 if self.update == "additive" else 1.0
