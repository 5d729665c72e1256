"""Parts of k-cap networks of every kind: who fires, and where there are synapses."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike

from lax_learning._checks import (
    check_choice,
    check_count,
    check_flag,
    check_floating_dtype,
    check_function,
    check_instance,
    check_memory,
    check_probability,
    describe,
)
from lax_learning.plasticity._k_cap import top_k_mask
from lax_learning.plasticity.networks import Fire, check_initialiser
from lax_learning.plasticity.scheme import Scheme
from lax_learning.plasticity.tables import BUILT_IN, Bins, TableRule
from lax_learning.types import Key

MAX_LAYERS = 1000
_PLACES_TRIED = 65


def firing(name: str, cap: int, width: int, fired: str) -> Fire:
    """`z -> (cap(relu(z)), who fired)` for a layer of `width` units; `name` is that of the argument `cap`."""
    check_count(name, cap)
    if cap > width:
        raise ValueError(f"{name}: expected at most {width}, the width of its layer, got {cap}")
    check_choice("fired", fired, ("value", "index"))

    def fire(z: Array) -> tuple[Array, Array]:
        values = jax.nn.relu(z)
        chosen = top_k_mask(values, cap)
        who = chosen & (values > 0) if fired == "value" else chosen
        return jnp.where(chosen, values, 0), who.astype(jnp.int32)

    return fire


def random_mask(edge_probability: ArrayLike) -> Callable[[Key, tuple[int, int]], Array]:
    """`(key, shape) -> mask` with synapses of that probability."""
    check_probability("edge_probability", edge_probability)

    def mask(key: Key, shape: tuple[int, int]) -> Array:
        probability = jnp.asarray(edge_probability)
        if jnp.issubdtype(probability.dtype, jnp.integer):  # 0 or 1
            probability = probability.astype(jnp.float32)
        return jax.random.bernoulli(key, probability, shape)

    return mask


def full_mask(key: Key, shape: tuple[int, int]) -> Array:
    """A synapse everywhere."""
    return jnp.ones(shape, bool)


def check_made_of(scheme: Any, w_init: Any, dtype: Any, shapes: Sequence[tuple[int, int]]) -> None:
    """Raises for a scheme, initialiser or dtype that is none, and for weights that do not fit into memory."""
    check_instance("scheme", scheme, Scheme, "a Scheme")
    check_initialiser("w_init", w_init)
    check_floating_dtype("dtype", dtype)
    if len(shapes) > MAX_LAYERS:
        raise ValueError(f"widths: expected at most {MAX_LAYERS} layers, got {len(shapes)}")
    check_memory("widths", shapes, dtype)


def table_shape(rule: Any, num_pre: int, num_post: int, cap: int, num_inputs: int) -> tuple[int, ...]:
    """The shape of the table of a layer; raises for a rule that does not fit its table."""
    check_instance(
        "rule", rule, TableRule, "a TableRule, which says what to read from a table, such as pre_post"
    )
    check_flag("rule.reads_pre", rule.reads_pre)
    if rule.bins is not None and rule not in BUILT_IN:
        check_instance("rule.bins", rule.bins, Bins, "Bins or None")
        check_function("rule.bins.size", rule.bins.size, "a function of the cap", 1)
        expected = "a function of (count [out], num_inputs [out])"
        check_function("rule.bins.place", rule.bins.place, expected, None, None)
        num_bins = rule.bins.size(cap)
        check_count(f"rule.bins.size({cap})", num_bins)
        _check_places(rule.bins, int(num_bins), cap, num_inputs)
    shape = rule.shape(num_pre, num_post, cap)
    check_memory("rule", [shape])
    return shape


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
            raise TypeError(
                f"rule.bins.place: expected a function of (count [out], num_inputs [out]), got {error}"
            ) from error
    dtype: Any = getattr(places, "dtype", jnp.float32)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"rule.bins.place: expected integer bins, got {describe(places)}")
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
