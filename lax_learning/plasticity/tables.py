"""Plasticity tables: a rule says which entry of its table a synapse reads (Cristian et al., 2020)."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Tables(NamedTuple):
    """The tables of a network: what meta-learning learns and transfer carries over.

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
      bins: the axis behind that of the postsynaptic code; None for a table without.
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
        """`rows[p, j]`: what the synapses onto unit `j` read whose presynaptic code is `p`.

        A rule that does not read the presynaptic code has one row.

        Example:
          >>> table = jnp.array([[0.0, 0.1], [1.0, 1.1]])
          >>> pre_post.rows(table, jnp.array([1, 0]), jnp.array([0, 1, 1]), jnp.ones((2, 3), bool)).tolist()
          [[0.0, 0.10000000149011612, 0.10000000149011612], [1.0, 1.100000023841858, 1.100000023841858]]
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

BUILT_IN = (pre_post, pre_post_count, pre_post_percent, post_count)
