"""Neuron birth-death: a population of neurons that is resampled in training (Rotskoff et al., 2019)."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from lax_learning import _checks as checks
from lax_learning._arrays import check_counter
from lax_learning._lazily import lazily
from lax_learning.birth_death._population import PICKS, Population, choose, distinct_slots, independent_slots
from lax_learning.types import Dynamics, Key, Params


class State(NamedTuple):
    """State of a population.

    Fields:
      ancestor: the initial neuron from which each neuron descends; -1 for descendants of new neurons.
      num_killed, num_cloned: numbers of kills and clones so far, as defined in `Events`.
    """

    ancestor: Int[Array, " neurons"]
    num_killed: Int[Array, ""]
    num_cloned: Int[Array, ""]


class Events(NamedTuple):
    """Events of one update.

    Fields:
      rates: `V` of every neuron, after centring; neurons with a rate of NaN are neither killed nor cloned.
      killed: neurons that were replaced by a survivor, a new neuron, or a clone.
      cloned: neurons whose copy overwrote another neuron. With `slots="independent"`, a later clone may
        have overwritten this copy in the same update; with `slots="distinct"`, only clones with a slot count.
      origin: the neuron of which each is a copy; its own index if unchanged, -1 for new neurons.
    """

    rates: Float[Array, " neurons"]
    killed: Bool[Array, " neurons"]
    cloned: Bool[Array, " neurons"]
    origin: Int[Array, " neurons"]


class Draws(NamedTuple):
    """The random numbers of one update, uniform in 0..1, one per neuron.

    Fields:
      kill: a neuron is killed if this is below its probability.
      survivor: selects the survivor that replaces a killed neuron.
      clone: a neuron is cloned if this is below its probability.
      slot: selects the neuron that a clone overwrites.
    """

    kill: Float[Array, " neurons"]
    survivor: Float[Array, " neurons"]
    clone: Float[Array, " neurons"]
    slot: Float[Array, " neurons"]


def draws(key: Key, num_neurons: int) -> Draws:
    """Draws the random numbers of one update from `U(0, 1)`."""
    checks.check_key("key", key)
    checks.check_count("num_neurons", num_neurons)
    checks.check_memory("num_neurons", [(len(Draws._fields), num_neurons)])
    return Draws(*jax.random.uniform(key, (4, num_neurons)))


def _normal(key: Key, params: Params, size: int) -> Params:
    """Draws new neurons, every entry from `N(0, 1) / size`."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.normal(k, a.shape, a.dtype) / size for k, a in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def dynamics(
    alpha: ArrayLike,
    *,
    axes: PyTree,
    charges: Callable[[Params], PyTree],
    scheme: Literal["clone", "prior"] = "clone",
    center: Literal["none", "mean"] = "none",
    probability: Literal["linear", "exponential"] = "linear",
    charge: Literal["copy", "split"] = "copy",
    slots: Literal["distinct", "independent"] = "distinct",
    prior: Callable[[Key, Params], Params] | None = None,
    draws: Callable[[Key, int], Draws] = draws,
) -> Dynamics:
    """Kills neurons that raise the loss and clones those that lower it, at a constant population size.

    `V_i = c_i dL/dc_i`, optionally centred; `p_i = alpha |V_i|` or `1 - exp(-alpha |V_i|)`

    Each neuron with V > 0 is killed with probability p, and replaced by a copy of a survivor or by a new
    neuron. Then, at the same rates, each neuron with V < 0 is cloned with probability p: its copy overwrites
    a neuron that is not cloned. If all neurons would be killed, none is; if all would be cloned, none is.

    Args:
      alpha: speed of the population's changes, per update; `alpha dt` in the paper.
      axes: pytree with the structure of params: for every leaf, the axis that indexes the neurons, or None;
        also None where params have None instead of an array.
      charges: function that picks the leaves of params that are charges c, the outgoing weights of neurons;
        if a neuron has several charges, V is summed over them.
      scheme: "clone", as above, or "prior": killed neurons become new ones with charge 0; none is cloned.
      center: "none", or "mean" to subtract the population mean from V.
      probability: "linear", as in the published code, or "exponential", as in the paper.
      charge: "copy": a copy has the charge of its origin, so the function jumps. "split": a neuron and its
        copies share its charge, so the function loses only the contributions of overwritten neurons.
      slots: "distinct": clones overwrite different neurons while there are any left. "independent", as
        published: each clone draws a neuron; if several draw the same one, the last clone stays.
      prior: `(key, params) -> params` of new neurons, a pure function of its arguments; by default, entries
        are `N(0, 1) / n`. Unused with scheme "clone".
      draws: `(key, n) -> Draws`, to supply other random numbers.

    Returns:
      Dynamics: `init(params) -> State` and `update(key, params, state, gradients) ->
      ((params, state), Events)`, with gradients of the loss w.r.t. params. `update(key, params, state,
      rates=V)` uses given rates `[n]` instead. `follow` applies the events to an optimiser's moments.

    Example:
      >>> import lax_learning as ll
      >>> network = ll.mlp((5, 8, 1), b_init=None)
      >>> resample = ll.birth_death.dynamics(0.5, axes=({"w": 1}, {"w": 0}), charges=lambda params: params[1])
      >>> params = network.init(jax.random.key(0))
      >>> state = resample.init(params)
      >>> gradients = jax.grad(lambda p: jnp.sum(network.apply(p, jnp.ones((3, 5)))))(params)
      >>> (params, state), events = jax.jit(resample.update)(jax.random.key(1), params, state, gradients)
      >>> events.origin.shape
      (8,)

    References:
      Rotskoff et al., Global convergence of neuron birth-death dynamics, https://arxiv.org/abs/1902.01843,
      2019.
    """
    checks.check_not_negative("alpha", alpha)
    checks.check_function("charges", charges, PICKS, None)
    checks.check_function("draws", draws, "a function of (key, n) that returns Draws", None, 1)
    if prior is not None:
        checks.check_function("prior", prior, "a function of (key, params) or None", None, None)
    checks.check_choice("scheme", scheme, ("clone", "prior"))
    checks.check_choice("center", center, ("none", "mean"))
    checks.check_choice("probability", probability, ("linear", "exponential"))
    checks.check_choice("charge", charge, ("copy", "split"))
    checks.check_choice("slots", slots, ("distinct", "independent"))

    def init(params: Params) -> State:
        population = Population(params, axes)
        population.charges(charges)
        none = jnp.zeros((), jnp.int32)
        return State(jnp.arange(population.size, dtype=jnp.int32), none, none)

    def replace(key: Key, params: Params, u: Draws, killed: Array, cloned: Array) -> Any:
        population, neurons = Population(params, axes), jnp.arange(killed.size, dtype=jnp.int32)
        if scheme == "prior":
            fresh = prior(key, params) if prior else _normal(key, params, population.size)
            origin = jnp.where(killed, -1, neurons)
        else:
            fresh = params
            source = (distinct_slots if slots == "distinct" else independent_slots)(u.slot, cloned)
            placed = source != neurons
            origin = jnp.where(placed, source, jnp.where(killed, choose(u.survivor, ~killed), neurons))
            if slots == "distinct":  # with "independent" slots, overwritten clones count too
                found_slot = jnp.where(placed, source, neurons.size)
                cloned = jnp.zeros_like(cloned).at[found_slot].set(True, mode="drop")
        share = None
        if charge == "split":
            not_fresh = jnp.where(origin < 0, neurons.size, origin)
            share = jnp.zeros(neurons.shape, jnp.float32).at[not_fresh].add(1, mode="drop")[origin]
        after = population.replaced(population.charges(charges), origin, share, fresh)
        return after, origin, cloned

    def keep(key: Key, params: Params, u: Draws, killed: Array, cloned: Array) -> Any:
        return params, jnp.arange(killed.size, dtype=jnp.int32), cloned

    def update(
        key: Key,
        params: Params,
        state: State,
        gradients: Params | None = None,
        *,
        rates: ArrayLike | None = None,
    ) -> tuple[tuple[Params, State], Events]:
        checks.check_key("key", key)
        checks.check_instance("state", state, State, "a State, from init")
        ancestor = checks.as_array("state.ancestor", state.ancestor)
        check_counter("state.num_killed", state.num_killed)
        check_counter("state.num_cloned", state.num_cloned)
        population = Population(params, axes)
        picked, shape = population.charges(charges), (population.size,)
        if (gradients is None) == (rates is None):
            got = "none" if gradients is None else "both"
            raise ValueError(f"gradients, rates: expected one of them, got {got}")
        v = population.rates(gradients, picked) if rates is None else checks.as_floating("rates", rates)
        checks.check_shapes(["rates", "state.ancestor"], [v, ancestor], [shape] * 2)
        if center == "mean":
            mean = jnp.mean(v)
            v = v - jnp.where(jnp.isinf(mean), jnp.sum(v / v.size), mean)  # the sum may overflow
        draw_key, prior_key = jax.random.split(key)
        u = draws(draw_key, population.size)
        checks.check_instance("draws", u, Draws, "a function that returns Draws")
        names = [f"draws.{name}" for name in Draws._fields]
        u = Draws(*map(checks.as_floating, names, u))
        checks.check_shapes(names, u, [shape] * len(u))
        odds = jnp.asarray(alpha, v.dtype) * jnp.abs(v)
        if probability == "exponential":
            odds = -jnp.expm1(-odds)
        killed = (v > 0) & (u.kill < odds)
        killed = killed & ~jnp.all(killed)
        cloned = (v < 0) & (u.clone < odds) & (scheme == "clone")
        cloned = cloned & ~jnp.all(cloned)
        operands = prior_key, population.params, u, killed, cloned
        params, origin, cloned = lazily(jnp.any(killed | cloned), replace, keep, *operands)
        after = State(
            jnp.where(origin < 0, -1, ancestor[origin]),
            state.num_killed + jnp.sum(killed, dtype=jnp.int32),
            state.num_cloned + jnp.sum(cloned, dtype=jnp.int32),
        )
        return (params, after), Events(v, killed, cloned, origin)

    return Dynamics(init, update)
