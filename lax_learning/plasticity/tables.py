"""Plasticity tables: the entry of its table that a synapse reads, and its change by that entry."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from lax_learning import _checks as checks

_PLACES_TRIED = 65


class Tables(NamedTuple):
    """The tables of a network, learned by meta-learning and carried over by transfer.

    Fields:
      hidden: one table for all plastic hidden layers, or one a layer; none where there is no such layer.
      output: the table of the output layer.
    """

    hidden: tuple[Array, ...]
    output: Array


class Bins(NamedTuple):
    """The last axis of a table: how many of its inputs a postsynaptic unit saw fire.

    Fields:
      size: `cap of the presynaptic layer -> number of bins`.
      place: `(count [out], num_inputs [out]) -> bin [out]`: of the inputs of every postsynaptic unit, how
        many fired and how many there are. A network tries counts up to its cap when it is made and refuses
        bins outside of the table; one that shows up later is clamped to the nearest.
    """

    size: Callable[[int], int]
    place: Callable[[Array, Array], Array]


class TableRule(NamedTuple):
    """Entry that a synapse reads: `beta = table[pre, post, bin]`, without the axes the rule does not read.

    `pre` and `post` are the codes of the units on either side: whether the unit fired, in a recurrent
    network its firing history; for an output unit, whether it is the label. Every table rule is a value of
    this type; a new one takes one line.

    Fields:
      reads_pre: whether the table has an axis for the presynaptic code.
      bins: the axis after that of the postsynaptic code; None for a table without.
    """

    reads_pre: bool
    bins: Bins | None

    def shape(self, num_pre: int, num_post: int, cap: int) -> tuple[int, ...]:
        """The shape of the table for so many codes on either side and the cap of the presynaptic layer."""
        pre = (num_pre,) if self.reads_pre else ()
        bins = () if self.bins is None else (self.bins.size(cap),)
        return (*pre, num_post, *bins)

    def rows(
        self,
        table: Float[Array, "..."],
        pre: Int[Array, " in"],
        post: Int[Array, " out"],
        mask: Bool[Array, "in out"],
    ) -> Float[Array, "codes out"]:
        """`rows[p, j]`: the entry that synapses from presynaptic code `p` onto unit `j` read.

        A rule that does not read the presynaptic code has one row.

        Example:
          >>> table = jnp.array([[0.0, 0.1], [1.0, 1.1]])
          >>> pre_post.rows(table, jnp.array([1, 0]), jnp.array([1, 1, 0]), jnp.ones((2, 3), bool)).shape
          (2, 3)
        """
        index = post
        if self.bins is not None:
            # A product of zeros and ones in float32: exact below 2^24, and faster than one of integers.
            count = (pre > 0).astype(jnp.float32) @ mask.astype(jnp.float32)
            num_inputs = jnp.sum(mask, axis=0, dtype=jnp.int32)
            size = table.shape[-1]
            place = jnp.asarray(self.bins.place(count.astype(jnp.int32), num_inputs), jnp.int32)
            index = index * size + jnp.clip(place, 0, size - 1)
        return table.reshape(table.shape[0] if self.reads_pre else 1, -1)[:, index]


_COUNT = Bins(lambda cap: cap + 1, lambda count, num_inputs: count)
# 5 % bins, floor(20 count / num_inputs) in exact arithmetic; a unit without inputs has a share of 0.
_PERCENT = Bins(lambda cap: 21, lambda count, num_inputs: 20 * count // jnp.maximum(num_inputs, 1))

pre_post = TableRule(True, None)
"""`table[pre fired?, post fired?]`, in the output layer `[pre fired?, is it the label?]`: 2 x 2."""

pre_post_count = TableRule(True, _COUNT)
"""The same, and the number of connected presynaptic units that fired: 2 x 2 x (cap + 1)."""

pre_post_percent = TableRule(True, _PERCENT)
"""The same, with that number as a share of the unit's inputs, in bins of 5 %: 2 x 2 x 21."""

post_count = TableRule(False, _COUNT)
"""`table[post fired?, number of connected presynaptic units that fired]`: 2 x (cap + 1)."""


def table_shape(rule: Any, cap: int, num_inputs: int) -> tuple[int, ...]:
    """The shape of the table of a feed-forward layer; raises for a rule that does not fit its table."""
    checks.check_instance("rule", rule, TableRule, "a TableRule, such as pre_post")
    checks.check_flag("rule.reads_pre", rule.reads_pre)
    if not any(rule.bins is known for known in (None, _COUNT, _PERCENT)):
        checks.check_instance("rule.bins", rule.bins, Bins, "Bins or None")
        checks.check_function("rule.bins.size", rule.bins.size, "a function of the cap", 1)
        checks.check_function("rule.bins.place", rule.bins.place, _PLACE, None, None)
        num_bins = rule.bins.size(cap)
        checks.check_count(f"rule.bins.size({cap})", num_bins)
        _check_places(rule.bins, int(num_bins), cap, num_inputs)
    shape = rule.shape(2, 2, cap)
    checks.check_memory("rule", [shape])
    return shape


_PLACE = "a function of (count [out], num_inputs [out])"


def _check_places(bins: Bins, num_bins: int, cap: int, num_inputs: int) -> None:
    """Raises unless bins are integers within the table; others would be clamped without a word."""
    inputs = np.unique(np.linspace(0, num_inputs, _PLACES_TRIED).astype(np.int32))
    fired = np.unique(np.linspace(0, cap, 1000).astype(np.int32))
    count, of = (a.ravel() for a in np.meshgrid(fired, inputs))
    count, of = count[count <= of], of[count <= of]
    with jax.ensure_compile_time_eval():
        try:
            places = bins.place(jnp.asarray(count), jnp.asarray(of))
        except (TypeError, ValueError) as error:
            raise TypeError(f"rule.bins.place: expected {_PLACE}, got {error}") from error
    dtype: Any = getattr(places, "dtype", jnp.float32)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"rule.bins.place: expected integer bins, got {checks.describe(places)}")
    if places.shape not in ((), count.shape):
        raise ValueError(f"rule.bins.place: expected a bin a unit, {[count.size]}, got {list(places.shape)}")
    if isinstance(places, Tracer):
        return
    places = np.broadcast_to(places, count.shape)
    outside = np.flatnonzero((places < 0) | (places >= num_bins))
    if outside.size:
        i = outside[0]
        raise ValueError(
            f"rule.bins.place: expected bins in 0 .. {num_bins - 1}, got {places[i]} "
            f"for {count[i]} of {of[i]} inputs that fired"
        )


class Update(NamedTuple):
    """The weight at the start of an episode, `(w, change) -> w`, and the summand of a change.

    If a small `d` is added to the sum of the summands, the final weight is `apply(w, d)` in place of `w`.
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
        checks.check_positive("step_size", self.step_size)
        checks.check_choice("update", self.update, UPDATES)
        checks.check_choice("samples", self.samples, ("every", "misclassified"))
        checks.check_choice("rows", self.rows, ("all", "two"))
