"""Neuron birth-death: a population of neurons that resamples itself (Rotskoff et al., 2019)."""

from collections.abc import Callable
from typing import Any, NamedTuple

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
      ancestor: the neuron of the start that each one descends from; -1 if from a fresh one.
      num_killed, num_cloned: kills and clones so far, as in `Events`.
    """

    ancestor: Int[Array, " neurons"]
    num_killed: Int[Array, ""]
    num_cloned: Int[Array, ""]


class Events(NamedTuple):
    """Events of one update.

    Fields:
      rates: `V` of every neuron, centred if asked for; one with a rate of NaN is neither killed nor cloned.
      killed: neurons that were replaced by a survivor, a fresh neuron, or a clone.
      cloned: neurons whose copy overwrote another. With `slots="distinct"` those that found a slot; with
        `slots="independent"` a later clone may have overwritten the copy in the same update.
      origin: the neuron that each one is a copy of; itself where nothing happened, -1 where it is fresh.
    """

    rates: Float[Array, " neurons"]
    killed: Bool[Array, " neurons"]
    cloned: Bool[Array, " neurons"]
    origin: Int[Array, " neurons"]


class Draws(NamedTuple):
    """The random numbers of one update, uniform in 0..1, one a neuron.

    Fields:
      kill: a neuron is killed if this is below its probability.
      survivor: chooses the survivor that a killed neuron becomes a copy of.
      clone: a neuron is cloned if this is below its probability.
      slot: chooses the neuron that a clone overwrites.
    """

    kill: Float[Array, " neurons"]
    survivor: Float[Array, " neurons"]
    clone: Float[Array, " neurons"]
    slot: Float[Array, " neurons"]


Replaced = tuple[Params, Int[Array, " neurons"], Bool[Array, " neurons"]]
"""Params after an update, the origin of every neuron, and who was cloned."""


def draws(key: Key, num_neurons: int) -> Draws:
    """Draws of one update: `U(0, 1)`."""
    checks.check_key("key", key)
    checks.check_count("num_neurons", num_neurons)
    checks.check_memory("num_neurons", [(len(Draws._fields), num_neurons)])
    return Draws(*jax.random.uniform(key, (4, num_neurons)))


def _mean(v: Array) -> Array:
    """The mean, also where the sum is beyond the largest number."""
    mean = jnp.mean(v)
    return jnp.where(jnp.isinf(mean), jnp.sum(v / v.size), mean)


_CHOICES: dict[str, dict[str, Any]] = {
    "scheme": {"clone": False, "prior": True},
    "center": {"none": lambda v: v, "mean": lambda v: v - _mean(v)},
    "probability": {"linear": lambda r: r, "exponential": lambda r: -jnp.expm1(-r)},
    "charge": {"copy": jnp.ones_like, "split": lambda copies: copies},
    "slots": {"distinct": distinct_slots, "independent": independent_slots},
}


def dynamics(
    alpha: ArrayLike,
    *,
    axes: PyTree,
    charges: Callable[[Params], PyTree],
    scheme: str = "clone",
    center: str = "none",
    probability: str = "linear",
    charge: str = "copy",
    slots: str = "distinct",
    prior: Callable[[Key, Params], Params] | None = None,
    draws: Callable[[Key, int], Draws] = draws,
) -> Dynamics:
    """Kills neurons that raise the loss and clones those that lower it; their number never changes.

    `V_i = c_i dL/dc_i`, centred or not; `p_i = alpha |V_i|` or `1 - exp(-alpha |V_i|)`

    Each neuron with V > 0 is killed with probability p: it becomes a copy of a survivor, or starts afresh.
    Then each neuron with V < 0 is cloned with probability p, by the same rates: its copy overwrites another
    one that is not cloned itself. If nobody would survive, nobody is killed; if all would be cloned, none is.

    Args:
      alpha: how fast the population changes, per update; for the paper's `alpha dt` their product.
      axes: the structure of params; for every leaf the axis that counts the neurons, or None. Where params
        have None in place of an array, so do axes.
      charges: picks the leaves of params that are charges c, the weights that read the neurons; with
        several charges a neuron, V is summed over them.
      scheme: "clone", as above, or "prior": the killed start afresh with charge 0, and none are cloned.
      center: "none", or "mean": V less its mean over the population.
      probability: "linear", as the published code has it, or "exponential", as the paper.
      charge: "copy": a copy has the charge of its origin, and the function jumps. "split": all copies of a
        neuron share its charge, so that the function only loses what the overwritten ones added to it.
      slots: "distinct": clones overwrite different neurons, as long as there are any. "independent": as
        published, each draws its own, and of two on the same one the last stays.
      prior: `(key, params) -> params` of fresh neurons, a pure function of its arguments; by default every
        entry is `N(0, 1) / n`. Unused in scheme "clone".
      draws: `(key, n) -> Draws`, to put other random numbers in.

    Returns:
      Dynamics: `init(params) -> State` and `update(key, params, state, gradients) ->
      ((params, state), Events)`, with the gradients of the loss by params. `update(key, params, state,
      rates=V)` takes the rates `[n]` as they are. Moments of an optimizer come along by `follow`.

    Example:
      >>> import lax_learning as ll
      >>> network = ll.mlp((5, 8, 1), b_init=None)
      >>> resample = ll.birth_death.dynamics(0.5, axes=({"w": 1}, {"w": 0}), charges=lambda params: params[1])
      >>> params = network.init(jax.random.key(0))
      >>> state = resample.init(params)
      >>> gradients = jax.grad(lambda p: jnp.sum(network.apply(p, jnp.ones((3, 5)))))(params)
      >>> (params, state), events = resample.update(jax.random.key(1), params, state, gradients)
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
    given = {"scheme": scheme, "center": center, "probability": probability, "charge": charge, "slots": slots}
    for name, value in given.items():
        checks.check_choice(name, value, _CHOICES[name])
    is_prior, centred, odds_of, shares, overwrite = (_CHOICES[name][value] for name, value in given.items())

    def init(params: Params) -> State:
        population = Population(params, axes)
        population.charges(charges)
        none = jnp.zeros((), jnp.int32)
        return State(jnp.arange(population.size, dtype=jnp.int32), none, none)

    def replace(key: Key, params: Params, u: Draws, killed: Array, cloned: Array) -> Replaced:
        population, neurons = Population(params, axes), jnp.arange(killed.size, dtype=jnp.int32)
        origin = jnp.where(killed, -1 if is_prior else choose(u.survivor, ~killed), neurons)
        source = neurons if is_prior else overwrite(u.slot, cloned)
        placed = source != neurons
        origin = jnp.where(placed, source, origin)
        if slots == "distinct":  # with "independent" slots also clones that were overwritten count
            cloned = jnp.zeros_like(cloned).at[jnp.where(placed, source, neurons.size)].set(True, mode="drop")
        not_fresh = jnp.where(origin < 0, neurons.size, origin)
        copies = jnp.zeros(neurons.shape, jnp.float32).at[not_fresh].add(1, mode="drop")
        fresh = (prior or _normal)(key, params) if is_prior else params
        is_charge = population.charges(charges)
        return population.replaced(is_charge, origin, shares(copies)[origin], fresh), origin, cloned

    def keep(key: Key, params: Params, u: Draws, killed: Array, cloned: Array) -> Replaced:
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
        is_charge, shape = population.charges(charges), (population.size,)
        if (gradients is None) == (rates is None):
            got = "none" if gradients is None else "both"
            raise ValueError(f"gradients, rates: expected one of them, got {got}")
        v = population.rates(gradients, is_charge) if rates is None else checks.as_floating("rates", rates)
        checks.check_shapes(["rates", "state.ancestor"], [v, ancestor], [shape] * 2)
        v = centred(v)
        draw_key, prior_key = jax.random.split(key)
        u = draws(draw_key, population.size)
        checks.check_instance("draws", u, Draws, "a function that returns Draws")
        u = Draws(*(checks.as_floating(f"draws.{name}", each) for name, each in u._asdict().items()))
        checks.check_shapes([f"draws.{name}" for name in Draws._fields], u, [shape] * len(u))
        odds = odds_of(jnp.asarray(alpha, v.dtype) * jnp.abs(v))
        killed = (v > 0) & (u.kill < odds)
        killed = killed & ~jnp.all(killed)
        cloned = (v < 0) & (u.clone < odds) & (not is_prior)
        cloned = cloned & ~jnp.all(cloned)
        operands = prior_key, population.merged(population.leaves), u, killed, cloned
        params, origin, cloned = lazily(jnp.any(killed | cloned), replace, keep, *operands)
        after = State(
            jnp.where(origin < 0, -1, ancestor[origin]),
            state.num_killed + jnp.sum(killed, dtype=jnp.int32),
            state.num_cloned + jnp.sum(cloned, dtype=jnp.int32),
        )
        return (params, after), Events(v, killed, cloned, origin)

    def _normal(key: Key, params: Params) -> Params:
        """Fresh neurons: every entry from `N(0, 1) / n`."""
        leaves, structure = jax.tree.flatten(params)
        keys, size = jax.random.split(key, len(leaves)), Population(params, axes).size
        drawn = [jax.random.normal(k, a.shape, a.dtype) / size for k, a in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(structure, drawn)

    return Dynamics(init, update)
