"""Neuron birth-death against a loop over neurons, against exact expectations and against itself."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax import lax

import lax_learning as ll
from lax_learning._lazily import lazily
from lax_learning.data import planted
from tests.compare import assert_close, assert_same, differs

KEY = jax.random.key(0)
N, INPUTS = 7, 3  # neurons; a size that no other axis has
AXES = {"w": 0, "c": 0}
NUM_DRAWS = 20_000
SIGMAS = 5.0

Options = tuple[tuple[str, Any], ...]  # hashable, for `static_argnames`


def charges(params: Any) -> Any:
    return params["c"]


def population(seed: int = 0, dtype: Any = jnp.float32, num_neurons: int = N) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    w, c = rng.uniform(-1, 1, (num_neurons, INPUTS)), rng.uniform(-1, 1, num_neurons)
    return {"w": jnp.asarray(w, dtype), "c": jnp.asarray(c, dtype)}


def options(**choices: Any) -> Options:
    return tuple(sorted(choices.items()))


def make(choices: Options, alpha: Any = 1.0, **more: Any) -> ll.Dynamics:
    return ll.birth_death.dynamics(alpha, axes=AXES, charges=charges, **dict(choices), **more)


PARAMS = population()
START = make(()).init(PARAMS)
TRACES: list[Options] = []


@partial(jax.jit, static_argnames="choices")
def update(choices: Options, alpha: Any, params: Any, state: Any, rates: Any, u: ll.birth_death.Draws) -> Any:
    """One update by given rates and random numbers: compiled once for each variant."""
    TRACES.append(choices)
    return make(choices, alpha, draws=lambda key, n: u).update(KEY, params, state, rates=rates)


def draws(kill: Any = 0.0, survivor: Any = 0.0, clone: Any = 0.0, slot: Any = 0.0) -> ll.birth_death.Draws:
    return ll.birth_death.Draws(*(jnp.full(N, u, jnp.float32) for u in (kill, survivor, clone, slot)))


def vector(*values: float) -> jax.Array:
    return jnp.array(values, jnp.float32)


# --- properties, and a loop over neurons

Outcome = tuple[np.ndarray, np.ndarray, np.ndarray]


def resample(choices: Mapping[str, str], alpha: float, v: np.ndarray, u: Any) -> Outcome:
    """Who is killed, who is cloned, and whom each neuron is a copy of."""

    def happens(rate: np.floating, u: np.floating) -> bool:
        p = np.float32(alpha) * abs(rate)
        return bool(u < (-np.expm1(-p) if choices.get("probability") == "exponential" else p))

    prior, everyone = choices.get("scheme") == "prior", range(len(v))
    killed = [i for i in everyone if v[i] > 0 and happens(v[i], u.kill[i])]
    killed = [] if len(killed) == len(v) else killed
    cloned = [i for i in everyone if not prior and v[i] < 0 and happens(v[i], u.clone[i])]
    cloned = [] if len(cloned) == len(v) else cloned
    survivors = [i for i in everyone if i not in killed]
    others = [i for i in everyone if i not in cloned]

    origin = list(everyone)
    for i in killed:
        origin[i] = -1 if prior else survivors[int(u.survivor[i] * len(survivors))]
    if choices.get("slots") == "independent":
        for i in cloned:
            origin[others[int(u.slot[i] * len(others))]] = i
    else:
        in_turn = partial(sorted, key=lambda i: u.slot[i])
        pairs = list(zip(in_turn(others), in_turn(cloned), strict=False))
        for slot, i in pairs:
            origin[slot] = i
        cloned = [i for _, i in pairs]  # the others find no slot
    return np.isin(everyone, killed), np.isin(everyone, cloned), np.array(origin)


VARIANTS: dict[str, Options] = {
    "default": options(),
    "distinct-split": options(slots="distinct", charge="split", probability="exponential"),
    "independent": options(slots="independent", probability="exponential"),
    "independent-split": options(slots="independent", charge="split"),
    "prior": options(scheme="prior"),
    "prior-split": options(scheme="prior", charge="split", probability="exponential"),
}
RATES = st.lists(st.sampled_from([-3.0, -1.0, -0.5, -0.25, -0.0, 0.5, 1.0, 3.0]), min_size=N, max_size=N)
UNIFORM = st.lists(st.integers(0, 63), min_size=4 * N, max_size=4 * N)  # u * n is exact
SOME_CLONES = [-3.0, -3.0, -3.0, -3.0, -3.0, 3.0, 0.5]
ALL_CLONES = [-3.0] * N


@pytest.mark.parametrize("name", VARIANTS)
@settings(deadline=None, derandomize=True, database=None, max_examples=50)
@given(rates=RATES, numbers=UNIFORM, alpha=st.sampled_from([0.25, 0.5, 1.0]))
@example(rates=SOME_CLONES, numbers=[0] * 4 * N, alpha=1.0)
@example(rates=SOME_CLONES, numbers=[63, 0, 1, 0] * N, alpha=1.0)
@example(rates=[3.0] * N, numbers=[0] * 4 * N, alpha=1.0)
@example(rates=ALL_CLONES, numbers=[0] * 4 * N, alpha=1.0)
@example(rates=[-rate for rate in SOME_CLONES], numbers=[0] * 3 * N + [0, 63, 32, 0, 10, 20, 30], alpha=1.0)
def test_update_is_a_loop_over_neurons(
    name: str, rates: list[float], numbers: list[int], alpha: float
) -> None:
    choices = dict(VARIANTS[name])
    v, u = (
        np.array(rates, np.float32),
        ll.birth_death.Draws(*(np.array(numbers, np.float32).reshape(4, N) / 64)),
    )
    (params, state), events = update(VARIANTS[name], jnp.float32(alpha), PARAMS, START, v, u)
    killed, cloned, origin = resample(choices, alpha, v, u)
    np.testing.assert_array_equal(events.rates, v)
    np.testing.assert_array_equal(events.killed, killed)
    np.testing.assert_array_equal(events.cloned, cloned)
    np.testing.assert_array_equal(events.origin, origin)

    # the population stays what it was, and every neuron is itself, fresh, or one that survived
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == jax.tree.map(
        lambda a: (a.shape, a.dtype), PARAMS
    )
    fresh = origin < 0
    np.testing.assert_array_equal(fresh, killed if choices.get("scheme") == "prior" else np.zeros(N, bool))
    replaced = origin != np.arange(N)
    assert not killed[origin[~fresh]].any()
    assert replaced[killed].all()
    assert not replaced[cloned].any(), "a clone was overwritten"

    # rows
    w, c = np.asarray(PARAMS["w"]), np.asarray(PARAMS["c"])
    copies = np.bincount(origin[~fresh], minlength=N) if choices.get("charge") == "split" else np.ones(N)
    np.testing.assert_array_equal(params["w"][~fresh], w[origin[~fresh]])
    np.testing.assert_allclose(params["c"][~fresh], (c / np.maximum(copies, 1))[origin[~fresh]], rtol=1e-6)
    np.testing.assert_array_equal(params["c"][fresh], 0)
    assert np.isfinite(params["w"]).all()

    # memory
    np.testing.assert_array_equal(state.ancestor, origin)
    assert (state.num_killed, state.num_cloned) == (killed.sum(), cloned.sum())


@pytest.mark.parametrize("name", VARIANTS)
def test_updates_are_not_compiled_again(name: str) -> None:
    for alpha, rate in ((0.5, 1.0), (1.0, -1.0)):
        rates = vector(*[rate] * N)
        update(VARIANTS[name], jnp.float32(alpha), population(1), START, rates, draws(slot=0.5))
    assert TRACES.count(VARIANTS[name]) == 1


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    ("alpha", "rates"),
    [(0.0, [3.0, -3.0] * 3 + [0.0]), (1.0, [0.0, -0.0] * 3 + [0.0]), (1.0, [np.nan] * N), (1.0, [3.0] * N)],
    ids=["alpha 0", "rates 0", "NaN", "everybody killed"],
)
def test_nothing_happens(name: str, alpha: float, rates: list[float]) -> None:
    params = {"w": PARAMS["w"].at[0, 0].set(-0.0), "c": PARAMS["c"].at[1].set(jnp.nan)}
    (after, state), events = update(
        VARIANTS[name], jnp.float32(alpha), params, START, vector(*rates), draws()
    )
    assert_same(jax.tree.map(lambda a: a.view(jnp.int32), (after, state)),
                jax.tree.map(lambda a: a.view(jnp.int32), (params, START)))  # fmt: skip
    assert not events.killed.any() and not events.cloned.any()
    np.testing.assert_array_equal(events.origin, np.arange(N))


@pytest.mark.parametrize("num_clones", range(N + 1))
def test_distinct_slots(num_clones: int) -> None:
    """Nobody is killed: as many are overwritten as there are clones or others, each clone at most once."""
    rates = vector(*[-3.0] * num_clones, *[0.0] * (N - num_clones))[jnp.array([3, 1, 5, 0, 6, 2, 4])]
    for seed in range(5):
        u = ll.birth_death.Draws(*jnp.asarray(np.random.default_rng(seed).uniform(0, 1, (4, N)), jnp.float32))
        (_, state), events = update(VARIANTS["default"], jnp.float32(1), PARAMS, START, rates, u)
        overwritten = np.asarray(events.origin) != np.arange(N)
        assert overwritten.sum() == min(num_clones, N - num_clones)
        assert len(set(np.asarray(events.origin)[overwritten])) == overwritten.sum()
        assert not (overwritten & np.asarray(events.cloned)).any()
        assert state.num_cloned == events.cloned.sum() == overwritten.sum()


def respond(params: Any, x: np.ndarray) -> np.ndarray:
    """Every neuron's share of the output, `[batch, neurons]`, in double precision."""
    w, c = (np.asarray(params[name], np.float64) for name in "wc")
    return np.maximum(x @ w.T, 0) * c


@pytest.mark.parametrize("name", ["distinct-split", "independent-split"])
@pytest.mark.parametrize("seed", range(5))
def test_split_charges_keep_the_function(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rates = vector(*rng.permutation([-3.0, -3.0, -1.0, 0.0, 0.0, 2.0, 3.0]))
    u = ll.birth_death.Draws(*jnp.asarray(rng.uniform(0, 0.6, (4, N)), jnp.float32))
    x = rng.normal(size=(20, INPUTS))
    (after, _), events = update(VARIANTS[name], jnp.float32(1), PARAMS, START, rates, u)
    origin = np.asarray(events.origin)
    lost = ~np.isin(np.arange(N), origin)
    assert lost.sum() >= 2
    # all copies of a neuron have its charge together
    charge = np.asarray(PARAMS["c"], np.float64)
    together = np.bincount(origin, np.asarray(after["c"], np.float64), minlength=N)
    np.testing.assert_allclose(together, np.where(lost, 0, charge), rtol=0, atol=1e-6)
    # the output loses what the lost ones added to it
    expected = respond(PARAMS, x)[:, ~lost].sum(1)
    np.testing.assert_allclose(respond(after, x).sum(1), expected, rtol=0, atol=1e-5)
    # and nothing where their charge was 0
    silent = {**PARAMS, "c": jnp.where(jnp.asarray(lost), 0, PARAMS["c"])}
    (after, _), _ = update(VARIANTS[name], jnp.float32(1), silent, START, rates, u)
    assert differs(after, silent)
    np.testing.assert_allclose(respond(after, x).sum(1), respond(silent, x).sum(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["default", "independent-split", "prior"])
def test_ancestors_and_counts_of_two_updates(name: str) -> None:
    prior = dict(VARIANTS[name]).get("scheme") == "prior"
    params, state, origins, counts = PARAMS, START, [], np.zeros(2, int)
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        rates = vector(*rng.permutation([-3.0, -3.0, 0.0, 0.0, 0.0, 3.0, 3.0]))
        u = ll.birth_death.Draws(*jnp.asarray(rng.uniform(size=(4, N)), jnp.float32))
        (params, state), events = update(VARIANTS[name], jnp.float32(1), params, state, rates, u)
        origins.append(np.asarray(events.origin))
        counts += np.array([int(events.killed.sum()), int(events.cloned.sum())])
    first, second = origins
    ancestor = np.where(second < 0, -1, first[second])
    np.testing.assert_array_equal(state.ancestor, ancestor)
    assert tuple(counts) == (int(state.num_killed), int(state.num_cloned)) == (4, 0 if prior else 4)
    old = ancestor >= 0
    np.testing.assert_array_equal(params["w"][old], PARAMS["w"][ancestor[old]])
    assert old.all() != prior
    assert (ancestor != second).any() or prior


# --- expectations


@partial(jax.jit, static_argnames="choices")
def many(choices: Options, alpha: Any, rates: Any) -> Any:
    """Events and params of many keys, from the library's own random numbers."""
    dynamics = make(choices, alpha)

    def one(key: Any) -> Any:
        (params, _), events = dynamics.update(key, PARAMS, START, rates=rates)
        return params, events

    return jax.vmap(one)(jax.random.split(jax.random.key(20), NUM_DRAWS))


SAMPLED: dict[str, Options] = {
    "distinct": options(),
    "independent": options(slots="independent", probability="exponential", center="mean"),
    "prior": options(scheme="prior", probability="exponential"),
}
V = np.array([0.9, -0.7, 0.4, -0.3, 0.6, -0.8, 0.05])


def events_of(name: str, alpha: float, rates: np.ndarray) -> Any:
    _, events = many(SAMPLED[name], jnp.float32(alpha), jnp.asarray(rates, jnp.float32))
    return jax.tree.map(np.asarray, events)


def centred(name: str, rates: np.ndarray) -> np.ndarray:
    return rates - rates.mean() if dict(SAMPLED[name]).get("center") == "mean" else rates


def odds(name: str, alpha: float, v: np.ndarray) -> np.ndarray:
    p = alpha * np.abs(v)
    return 1 - np.exp(-p) if dict(SAMPLED[name]).get("probability") == "exponential" else p


def deviation(samples: np.ndarray, expected: Any) -> np.ndarray:
    """Distance of the mean from what is expected, in standard errors of each coordinate."""
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    difference = np.abs(samples.mean(axis=0) - expected)
    return np.where(
        error > 0, difference / np.where(error > 0, error, 1), np.where(difference < 1e-6, 0, np.inf)
    )


def expected_copies(v: np.ndarray, p: np.ndarray, *, distinct: bool) -> np.ndarray:
    """How many copies of each neuron there are on average: a sum over all sets of events."""
    n, total = len(v), np.zeros(len(v))
    for event in product([False, True], repeat=n):
        happens = np.array(event)
        weight = np.where(happens, p, 1 - p).prod()
        killed, cloned = happens & (v > 0), happens & (v < 0)
        killed &= not killed.all()
        copy_of = np.eye(n)  # the chance that a slot (row) ends as a neuron (column)
        copy_of[killed] = ~killed / (~killed).sum()
        others, num_clones = ~cloned, cloned.sum()
        if num_clones and others.any():
            if distinct:
                hit = min(num_clones, others.sum()) / others.sum()
                by = hit * cloned / num_clones
            else:
                once = 1 / others.sum()
                later = np.where(cloned, num_clones - np.cumsum(cloned), 0)
                by = np.where(cloned, once * (1 - once) ** later, 0)
                hit = by.sum()
            copy_of[others] = (1 - hit) * copy_of[others] + by
        total += weight * copy_of.sum(0)
    return total


def copies_of(origin: np.ndarray) -> np.ndarray:
    return (origin[:, :, None] == np.arange(N)).sum(1)


@pytest.mark.parametrize("name", ["distinct", "independent"])
@pytest.mark.parametrize("alpha", [0.05, 1.0])
def test_expected_copies(name: str, alpha: float) -> None:
    v = centred(name, V)
    expected = expected_copies(v, odds(name, alpha, v), distinct=name == "distinct")
    np.testing.assert_allclose(expected.sum(), N)
    copies = copies_of(events_of(name, alpha, V).origin)
    assert deviation(copies, expected).max() < SIGMAS
    assert deviation(copies, 1).max() > 2 * SIGMAS
    if alpha < 0.1:
        # To first order a population of constant size centres the rates by itself.
        drift = -alpha * N / (N - 1) * (V - V.mean())
        np.testing.assert_allclose(expected - 1, drift, rtol=0, atol=N * alpha**2)


@pytest.mark.parametrize("name", SAMPLED)
@pytest.mark.parametrize("alpha", [0.05, 1.0])
def test_frequencies_of_events(name: str, alpha: float) -> None:
    v = centred(name, V)
    p, events = odds(name, alpha, v), events_of(name, alpha, V)
    np.testing.assert_allclose(events.rates, np.broadcast_to(v, events.rates.shape), rtol=0, atol=1e-6)
    killed, cloned = np.where(v > 0, p, 0), np.where((v < 0) & (name != "prior"), p, 0)
    assert deviation(events.killed, killed).max() < SIGMAS
    assert deviation(events.cloned, cloned).max() < SIGMAS
    # of any two neurons independently
    happens, p = events.killed | events.cloned, killed + cloned
    pairs = (happens[:, :, None] & happens[:, None, :]).reshape(NUM_DRAWS, -1)
    expected = np.where(np.eye(N, dtype=bool), p, np.outer(p, p)).ravel()
    often = (expected == 0) | (expected * NUM_DRAWS > 25)
    assert deviation(pairs, expected)[often].max() < SIGMAS
    if name == "prior":
        np.testing.assert_array_equal(events.origin, np.where(events.killed, -1, np.arange(N)))


def test_survivors_are_chosen_uniformly() -> None:
    rates = np.array([0.3, 0.3, 0.0, 0.0, 0.0, 0.3, 0.0])
    events = events_of("distinct", 1.0, rates)
    for i in (0, 5):
        for j in (1, 0, 5):
            # i is killed and of the other two only j, or neither
            who = np.isin(np.arange(N), [i, j])
            rows = (events.killed == who).all(1)
            survivors = np.where(who, 0, 1 / (N - who.sum()))
            assert rows.sum() > 500
            assert deviation(events.origin[rows, i, None] == np.arange(N), survivors).max() < SIGMAS
    # and by two neurons independently
    rows = (events.killed == np.isin(np.arange(N), [0, 5])).all(1)
    assert deviation(events.origin[rows, 0] == events.origin[rows, 5], 1 / (N - 2)).max() < SIGMAS


@pytest.mark.parametrize("name", ["distinct", "independent"])
def test_overwritten_slots_are_chosen_uniformly(name: str) -> None:
    rates = np.array([0.0, -0.3, 0.0, 0.0, -0.3, 0.3, 0.3])  # centred
    events = events_of(name, 1.0, rates)
    for clones in ([1], [4], [1, 4]):
        who = np.isin(np.arange(N), clones)
        rows = (events.cloned == who).all(1) & ~events.killed.any(1)
        assert rows.sum() > 300
        others, last = 1 / (N - len(clones)), clones[-1]
        slots = events.origin[rows] == last
        slots[:, last] = False
        assert deviation(slots, np.where(who, 0, others)).max() < SIGMAS
        first = (events.origin[rows] == clones[0]).sum(1) - 1
        overwritten = 1.0 if name == "distinct" or len(clones) == 1 else 1 - others
        assert deviation(first, overwritten).max() < SIGMAS


def test_too_few_slots_go_to_clones_chosen_uniformly() -> None:
    rates = np.array([-1.0, -1.0, 0.0, -1.0, 0.0, -1.0, -1.0])
    copies = copies_of(events_of("distinct", 2.0, rates).origin)
    assert deviation(copies, np.where(rates < 0, 1 + 2 / 5, 0)).max() < SIGMAS


def test_fresh_neurons_are_small_and_normal() -> None:
    params, events = many(SAMPLED["prior"], jnp.float32(1.0), jnp.asarray(V, jnp.float32))
    killed = np.asarray(events.killed)
    np.testing.assert_array_equal(params["c"], np.where(killed, 0, PARAMS["c"]))
    z = N * np.asarray(params["w"])[killed]
    assert deviation(z, 0).max() < SIGMAS
    assert deviation(z**2, 1).max() < SIGMAS
    assert deviation(z**4, 3).max() < SIGMAS
    assert deviation(z[:, 0] * z[:, 1], 0).max() < SIGMAS
    both = killed[:, 0] & killed[:, 2]
    assert deviation(N**2 * np.prod(params["w"][both][:, [0, 2]], axis=1), 0).max() < SIGMAS
    # the draws that kill are not those that fill
    assert deviation(z[:, 0] > 0, 0.5).max() < SIGMAS


# --- conditions that stay conditions


def sort_twice(x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    return {"sorted": 2 * jnp.sort(x) - y, "positive": x > 0}  # exact in any program


def leave(x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    return {"sorted": x, "positive": y > 1}


def lazy(needed: jax.Array, x: jax.Array, y: jax.Array) -> Any:
    return lazily(needed, sort_twice, leave, x, y)


def plain(needed: jax.Array, x: jax.Array, y: jax.Array) -> Any:
    return lax.cond(needed, sort_twice, leave, x, y)


def scanned(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function on every row of its first two arguments, in a scan."""

    def run(needed: jax.Array, xs: jax.Array, y: jax.Array) -> Any:
        return lax.scan(lambda y, row: (y + 1, function(*row, y)), y, (needed, xs))

    return run


NEEDED = np.array([[True, False, True], [False, False, False]])  # needed in one row and not in the other
XS, YS = (np.random.default_rng(i).normal(size=(2, 3, 5)).astype(np.float32) for i in range(2))
WRAPPED: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "alone": (jax.jit, (NEEDED[0, 0], XS[0, 0], YS[0, 0])),
    "vmap": (jax.vmap, (NEEDED[0], XS[0], YS[0])),
    "vmap of none": (jax.vmap, (NEEDED[1], XS[1], YS[1])),
    "one condition": (partial(jax.vmap, in_axes=(None, 0, 0)), (NEEDED[0, 0], XS[0], YS[0])),
    "shared": (partial(jax.vmap, in_axes=(0, None, 0)), (NEEDED[0], XS[0, 0], YS[0])),
    "axes": (partial(jax.vmap, in_axes=(0, 1, None), out_axes=1), (NEEDED[0], XS[0].T, YS[0, 0])),
    "nested": (lambda f: jax.vmap(jax.vmap(f)), (NEEDED, XS, YS)),
    "nested, shared": (
        lambda f: jax.vmap(jax.vmap(f, (0, None, 0)), (None, 0, 0)),
        (NEEDED[0], XS[:, 0], YS),
    ),
    "vmap of jit": (lambda f: jax.vmap(jax.jit(f)), (NEEDED[0], XS[0], YS[0])),
    "scan": (scanned, (NEEDED[0], XS[0], YS[0, 0])),
    "vmap of scan": (lambda f: jax.vmap(scanned(f)), (NEEDED, XS, YS[:, 0])),
    "scan of vmap": (lambda f: scanned(jax.vmap(f)), (NEEDED, XS, YS[0])),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_lazily_is_a_condition_of_every_member(name: str) -> None:
    wrap, operands = WRAPPED[name]
    assert_same(*jax.jit(lambda *operands: (wrap(lazy)(*operands), wrap(plain)(*operands)))(*operands))


def where(jaxpr: Any, primitive: str, within: bool = False) -> Iterator[bool]:
    """For each use of the primitive whether it is inside of a condition."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == primitive:
            yield within
        inside = within or equation.primitive.name == "cond"
        for leaf in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda a: hasattr(a, "eqns")):
            inner = getattr(leaf, "jaxpr", leaf)
            if hasattr(inner, "eqns"):
                yield from where(inner, primitive, inside)


@pytest.mark.parametrize("name", WRAPPED)
def test_lazily_stays_a_condition(name: str) -> None:
    wrap, operands = WRAPPED[name]
    uses = list(where(jax.make_jaxpr(wrap(lazy))(*operands).jaxpr, "sort"))
    assert uses and all(uses)
    if name == "vmap":  # the plain condition does not
        uses = list(where(jax.make_jaxpr(wrap(plain))(*operands).jaxpr, "sort"))
        assert uses and not any(uses)


@pytest.mark.parametrize("name", ["default", "prior"])
def test_replacing_neurons_stays_conditional(name: str) -> None:
    def members(keys: Any, rates: Any) -> Any:
        dynamics = make(VARIANTS[name])
        return jax.vmap(lambda key: dynamics.update(key, PARAMS, START, rates=rates)[0][0])(keys)

    jaxpr = jax.make_jaxpr(members)(jax.random.split(KEY, 3), vector(*V)).jaxpr
    for primitive in ("sort", "scatter-add") if name == "default" else ("erf_inv", "scatter-add"):
        uses = list(where(jaxpr, primitive))
        assert uses and all(uses), primitive


# --- the contract

CONTRACT = {name: VARIANTS[name] for name in ("distinct-split", "independent", "prior")}
KEYS = jax.random.split(KEY, 5)


@pytest.mark.parametrize("name", CONTRACT)
def test_jit_vmap_and_scan_change_nothing(name: str) -> None:
    gradients = population(3)

    def step(alpha: Any, carry: Any, key: Any) -> Any:
        return make(CONTRACT[name], alpha).update(key, *carry, gradients)

    def stacked(results: list[Any]) -> Any:
        return jax.tree.map(lambda *leaves: np.stack(leaves), *results)

    compiled, alphas = jax.jit(step), np.array([0.0, 1.0, 3.0], np.float32)
    ends, paths = [], []
    for alpha in alphas:
        carry, path = (PARAMS, START), []
        for key in KEYS:
            carry, events = compiled(alpha, carry, key)
            path.append(events)
        ends.append(carry)
        paths.append(stacked(path))
    loop = stacked(ends), stacked(paths)
    num_events = np.sum(loop[1].killed | loop[1].cloned, axis=(1, 2))
    assert num_events[0] == 0 and 0 < num_events[1] <= num_events[2]
    if name == "independent":  # one of them without `jit`, which takes long
        eager, events = step(alphas[2], (PARAMS, START), KEYS[0])
        assert_close((eager, events), compiled(alphas[2], (PARAMS, START), KEYS[0]), ulps=4)

    @jax.jit
    @jax.vmap
    def run(alpha: Any) -> Any:
        return lax.scan(partial(step, alpha), (PARAMS, START), KEYS)

    assert_close(run(alphas), loop, ulps=4)


@pytest.mark.parametrize("name", CONTRACT)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_dtypes(name: str, dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        params, gradients = population(0, dtype), population(3, dtype)
        dynamics = make(CONTRACT[name], 2.0)
        state = dynamics.init(params)
        (after, then), events = jax.eval_shape(dynamics.update, KEY, params, state, gradients)
        assert jax.tree.map(lambda a: a.dtype, after) == jax.tree.map(lambda a: a.dtype, params)
        assert events.rates.dtype == ("float32" if dtype == "bfloat16" else dtype)
        assert jax.tree.map(lambda a: a.dtype, then) == jax.tree.map(lambda a: a.dtype, state)
        assert events.origin.dtype == jnp.int32
        assert (events.killed.dtype, events.cloned.dtype) == (bool, bool)


def test_rates_in_half_precision_are_summed_in_single() -> None:
    """256 products of 1/256 and one of 1: their sum needs more than 8 bits."""
    c = jnp.concatenate([jnp.ones((2, 1)), jnp.full((2, 256), 1 / 256)], axis=1).astype(jnp.bfloat16)
    params = {"w": jnp.ones((2, 1), jnp.bfloat16), "c": c}
    gradients, dynamics = jax.tree.map(jnp.ones_like, params), make((), 0.0)

    @jax.jit
    def rates(params: Any) -> jax.Array:
        return dynamics.update(KEY, params, dynamics.init(params), gradients)[1].rates

    np.testing.assert_array_equal(rates(params), 2.0)


# --- pytrees


def test_neurons_in_the_middle_of_a_network() -> None:
    """The second hidden layer of three layers with biases, read by two outputs."""
    network = ll.mlp((3, 4, 5, 2))
    rng = np.random.default_rng(0)
    shapes = [((3, 4), 4), ((4, 5), 5), ((5, 2), 2)]

    def random() -> Any:
        return tuple(
            {
                "w": jnp.asarray(rng.normal(size=w), jnp.float32),
                "b": jnp.asarray(rng.normal(size=b), jnp.float32),
            }
            for w, b in shapes
        )

    params, gradients = random(), random()
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, jax.eval_shape(network.init, KEY))
    axes = ({"w": None, "b": None}, {"w": 1, "b": 0}, {"w": 0, "b": None})
    u = ll.birth_death.Draws(
        vector(0, 0, 0, 0, 0), vector(0, 0.3, 0.5, 0.7, 0.9), vector(0, 0, 0, 0, 0), vector(5, 1, 4, 2, 3) / 9
    )
    dynamics = ll.birth_death.dynamics(
        100.0, axes=axes, charges=lambda p: p[2]["w"], charge="split", draws=lambda key, n: u
    )
    state = dynamics.init(params)
    np.testing.assert_array_equal(state.ancestor, np.arange(5))
    (after, _), events = jax.jit(dynamics.update)(KEY, params, state, gradients)

    gradients = jax.tree.map(np.asarray, gradients)
    hidden, output = (jax.tree.map(np.asarray, params[i]) for i in (1, 2))
    rates = [sum(float(output["w"][i, k] * gradients[2]["w"][i, k]) for k in range(2)) for i in range(5)]
    np.testing.assert_allclose(events.rates, rates, rtol=1e-6)
    killed, cloned, origin = resample({}, 100.0, np.array(rates, np.float32), u)
    np.testing.assert_array_equal(events.origin, origin)
    assert killed.any() and cloned.any() and (origin != np.arange(5)).any()
    copies = np.bincount(origin, minlength=5)[origin]
    assert_same(after[0], params[0])
    np.testing.assert_array_equal(after[1]["w"], hidden["w"][:, origin])
    np.testing.assert_array_equal(after[1]["b"], hidden["b"][origin])
    np.testing.assert_allclose(after[2]["w"], output["w"][origin] / copies[:, None], rtol=1e-6)
    np.testing.assert_array_equal(after[2]["b"], output["b"])


def test_charges_of_several_leaves_and_axes_from_the_end() -> None:
    params = {"w": np.ones((3, N), np.float32), "c": (PARAMS["c"], PARAMS["w"].T)}
    gradients = {"w": np.ones((3, N), np.float32), "c": (vector(*V), population(2)["w"].T)}
    axes = {"w": -1, "c": (0, -1)}
    dynamics = ll.birth_death.dynamics(0.0, axes=axes, charges=charges)
    _, events = dynamics.update(KEY, params, dynamics.init(params), gradients)
    expected = V * PARAMS["c"] + np.sum(PARAMS["w"] * population(2)["w"], axis=1)
    np.testing.assert_allclose(events.rates, expected, rtol=0, atol=1e-6)


def test_leaves_of_a_prior_are_drawn_independently() -> None:
    params = {"a": PARAMS["c"], "b": PARAMS["c"], "c": PARAMS["c"], "other": jnp.ones(N)}
    axes = {"a": 0, "b": 0, "c": 0, "other": None}
    u = draws(kill=jnp.arange(N) / N)
    dynamics = ll.birth_death.dynamics(
        0.5, axes=axes, charges=charges, scheme="prior", draws=lambda key, n: u
    )
    state = dynamics.init(params)
    step = jax.jit(dynamics.update)
    (after, _), events = step(KEY, params, state, rates=jnp.ones(N))
    fresh = np.asarray(events.killed)
    assert 1 < fresh.sum() < N
    assert (after["a"] != after["b"])[fresh].all()
    (again, _), _ = step(jax.random.key(1), params, state, rates=jnp.ones(N))
    after, again = jax.tree.map(np.asarray, (after, again))
    assert (after["a"] != again["a"])[fresh].all(), "another key draws other neurons"
    assert_same(after["other"], np.asarray(params["other"]))
    assert_same(after["a"][~fresh], np.asarray(params["a"])[~fresh])


def test_a_prior_sees_the_params_and_a_key_of_its_own() -> None:
    seen = []

    def prior(key: Any, params: Any) -> Any:
        return {"w": 2 * params["w"] + jax.random.uniform(key), "c": params["c"] + 1}

    def drawn(key: Any, n: int) -> ll.birth_death.Draws:
        seen.append(jax.random.uniform(key))
        return draws()

    dynamics = make(options(scheme="prior"), prior=prior, draws=drawn)
    rates = vector(0, 0, 1, 0, 0, 0, 1)
    (after, _), _ = dynamics.update(KEY, PARAMS, START, rates=rates)
    fresh = np.asarray(rates) > 0
    assert_same(after["w"][~fresh], PARAMS["w"][~fresh])
    noise = np.asarray(after["w"] - 2 * PARAMS["w"])[fresh]
    np.testing.assert_allclose(noise, noise[0, 0], atol=1e-6)
    assert abs(noise[0, 0] - seen[0]) > 1e-3
    np.testing.assert_array_equal(after["c"], np.where(fresh, 0, PARAMS["c"]))


# --- moments

ORIGIN = np.array([0, 0, -1, 3, 1, 5, 6])
WEIGHTS = {"in": {"w": np.ones((3, N)), "b": np.ones(N)}, "out": {"w": np.ones((N, 2)), "b": np.ones(2)}}
OTHERS = {"other": {"w": np.ones((N, 3)), "b": np.ones(N)}}  # neurons of another layer, as many
MOMENT_AXES = {"in": {"w": 1, "b": 0}, "out": {"w": 0, "b": None}, "other": {"w": None, "b": None}}
NETWORK = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), WEIGHTS | OTHERS)


def labels(params: Any) -> Any:
    return {name: jax.tree.map(lambda _: "b", of) for name, of in params.items()} | {
        name: jax.tree.map(lambda _: "a", params[name]) for name in ("in", "other")
    }


OPTIMIZERS: dict[str, tuple[optax.GradientTransformation, int]] = {  # and how many moments a weight has
    "sgd": (optax.sgd(0.1), 0),
    "momentum": (optax.sgd(0.1, momentum=0.9), 1),
    "adam": (optax.adam(0.1), 2),
    "rmsprop": (optax.rmsprop(0.1, momentum=0.9), 2),
    "chain": (optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(1, 0, 9))), 2),
    "masked": (optax.masked(optax.adam(0.1), {"in": True, "out": True, "other": False}), 2),
    "partition": (optax.partition({"a": optax.adam(0.1), "b": optax.sgd(0.1, momentum=0.9)}, labels), -1),
    "inject": (optax.inject_hyperparams(optax.adam)(learning_rate=0.1), 2),
    "steps": (optax.MultiSteps(optax.adam(0.1), every_k_schedule=2).gradient_transformation(), 3),
    "half": (optax.adam(0.1, mu_dtype=jnp.bfloat16), 2),
}


def numbered(state: Any) -> Any:
    """The state with other entries everywhere, none of them 0."""
    leaves, structure = jax.tree.flatten(state)
    filled = [
        jnp.asarray(1 + i + np.arange(np.size(a)).reshape(np.shape(a)), a.dtype) for i, a in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, filled)


@pytest.mark.parametrize("copies", ["carry", "clear"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_follow(name: str, copies: str) -> None:
    optimizer, per_weight = OPTIMIZERS[name]
    state = numbered(jax.eval_shape(optimizer.init, NETWORK))
    after = ll.birth_death.follow(state, jnp.asarray(ORIGIN), NETWORK, MOMENT_AXES, copies=copies)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    moved = 0
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(after), strict=True
    ):
        at, old = jax.tree_util.keystr(path), np.asarray(old)
        assert new.dtype == old.dtype and new.shape == old.shape, at
        expected = old
        if N in old.shape and "other" not in at:  # by its size; the library goes by the path
            axis = old.shape.index(N)
            zero = ORIGIN < 0 if copies == "carry" else np.arange(N) != ORIGIN
            expected = np.take(old, np.maximum(ORIGIN, 0), axis)
            expected = np.where(np.expand_dims(zero, 1 - axis) if old.ndim > 1 else zero, 0, expected)
            moved += 1
        np.testing.assert_array_equal(
            np.asarray(new, np.float64), np.asarray(expected, np.float64), err_msg=at
        )
    assert moved == (2 * 2 + 1 if per_weight < 0 else 3 * per_weight)


def test_leaves_of_the_same_name_are_told_apart_by_their_paths() -> None:
    """The longest path that fits: `w` of the network is not the `w` of its part."""
    moments = {"w": vector(*range(N)), "part": {"w": vector(*range(N))}}
    after = ll.birth_death.follow(
        optax.TraceState(moments), jnp.asarray(ORIGIN), moments, {"w": None, "part": {"w": 0}}
    )
    np.testing.assert_array_equal(after.trace["w"], moments["w"])
    np.testing.assert_array_equal(after.trace["part"]["w"], [0, 0, 0, 3, 1, 5, 6])
    after = ll.birth_death.follow(
        optax.TraceState(moments), jnp.asarray(ORIGIN), moments, {"w": 0, "part": {"w": None}}
    )
    np.testing.assert_array_equal(after.trace["w"], [0, 0, 0, 3, 1, 5, 6])
    np.testing.assert_array_equal(after.trace["part"]["w"], moments["part"]["w"])


def test_moments_stay_if_nothing_happened() -> None:
    state = numbered(jax.eval_shape(optax.adam(0.1).init, NETWORK))
    for copies in ("carry", "clear"):
        assert_same(ll.birth_death.follow(state, jnp.arange(N), NETWORK, MOMENT_AXES, copies=copies), state)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("size", [5, N])
def test_factored_moments_stay(axis: int, size: int) -> None:
    """Also those of a square matrix, in which no length tells rows from columns."""
    params = {"w": jnp.ones((N, size) if axis == 0 else (size, N))}
    state = numbered(jax.eval_shape(optax.scale_by_factored_rms(min_dim_size_to_factor=2).init, params))
    assert_same(ll.birth_death.follow(state, jnp.asarray(ORIGIN), params, {"w": axis}), state)


def test_training_goes_on() -> None:
    """A step, a birth-death update and the moments, in a scan over steps for several seeds."""
    optimizer, _ = OPTIMIZERS["chain"]
    dynamics = ll.birth_death.dynamics(5.0, axes=MOMENT_AXES, charges=lambda p: p["out"]["w"])
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((8, 3), (8, 2)))

    def loss(p: Any) -> jax.Array:
        hidden = jax.nn.relu(x @ p["in"]["w"] + p["in"]["b"])
        return jnp.mean((hidden @ p["out"]["w"] + p["out"]["b"] - y) ** 2)

    def step(carry: Any, key: Any) -> Any:
        (params, population), moments = carry
        value, gradients = jax.value_and_grad(loss)(params)
        change, moments = optimizer.update(gradients, moments, params)
        params = jax.tree.map(jnp.add, params, change)
        after, events = dynamics.update(key, params, population, gradients)
        return (after, ll.birth_death.follow(moments, events.origin, params, MOMENT_AXES)), (value, events)

    @jax.jit
    @jax.vmap
    def train(key: Any) -> Any:
        params = jax.tree.map(lambda a: jnp.asarray(rng.uniform(-1, 1, a.shape), a.dtype), NETWORK)
        start = (params, dynamics.init(params)), optimizer.init(params)
        return lax.scan(step, start, jax.random.split(key, 6))

    _, (losses, events) = train(KEYS[:2])
    assert jnp.isfinite(losses).all()
    assert (events.origin != jnp.arange(N)).any()
    assert differs(events.origin[0], events.origin[1])


# --- the planted problem

D, M = 4, 3
PROBLEM = planted(D, M)


def test_teachers() -> None:
    keys = jax.random.split(jax.random.key(1), 5000)
    first, second = jax.jit(jax.vmap(PROBLEM.init))(keys)
    w, c = np.asarray(first["w"]), np.asarray(second["w"])[:, :, 0]
    assert w.shape == (5000, D, M) and c.shape == (5000, M)
    norms = np.linalg.norm(w, axis=1)
    np.testing.assert_allclose(norms * np.abs(c), 1, rtol=1e-5)
    # charges are uniform
    bound = M**-0.5
    assert 0.99 * bound < np.abs(c).max() <= bound
    for power in (1, 2, 4):
        assert deviation(c**power, 0 if power == 1 else bound**power / (power + 1)).max() < SIGMAS
    # directions are, too, and know nothing of the charges
    direction = w / norms[:, None]
    for values, expected in (
        (direction, 0),
        (direction[:, :, None] * direction[:, None], np.eye(D)[:, :, None] / D),
        (direction * np.sign(c)[:, None], 0),
        (direction[:, :, 0] * direction[:, :, 1], 0),
        (c[:, 0] * c[:, 1], 0),
    ):
        assert (
            deviation(values.reshape(5000, -1), np.broadcast_to(expected, values.shape[1:]).ravel()).max()
            < SIGMAS
        )


def test_teachers_in_half_precision_are_finite() -> None:
    first, _ = jax.jit(jax.vmap(planted(D, M, dtype=jnp.bfloat16).init))(jax.random.split(KEY, 2000))
    assert np.isfinite(np.asarray(first["w"], np.float32)).all()


def test_examples() -> None:
    teacher = PROBLEM.init(KEY)
    x, y = jax.jit(PROBLEM.sample, static_argnums=2)(jax.random.key(2), teacher, NUM_DRAWS)
    assert x.shape == (NUM_DRAWS, D) and y.shape == (NUM_DRAWS, 1)
    network = ll.mlp((D, M, 1), b_init=None)
    assert_close(y, network.apply(teacher, x), ulps=16)
    x = np.asarray(x, np.float64)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-6)
    assert deviation(x, 0).max() < SIGMAS
    products = (x[:, :, None] * x[:, None]).reshape(NUM_DRAWS, -1)
    assert deviation(products, np.eye(D).ravel() / D).max() < SIGMAS
    # of the sphere and not of a cube drawn onto it: E x^4 = 3 / (d (d + 2))
    assert deviation(x**4, 3 / (D * (D + 2))).max() < SIGMAS


def test_keys_and_dtypes_of_the_problem() -> None:
    teacher, other = PROBLEM.init(KEY), PROBLEM.init(KEYS[0])
    assert all(differs(a, b) for a, b in zip(teacher, other, strict=True))
    assert differs(PROBLEM.sample(KEY, teacher, 5), PROBLEM.sample(KEYS[0], teacher, 5))
    assert_same(PROBLEM.sample(KEY, teacher, 5), PROBLEM.sample(KEY, teacher, 5))
    for dtype in ("float32", "float64", "bfloat16"):
        with jax.enable_x64(dtype == "float64"), jax.numpy_dtype_promotion("strict"):
            problem = planted(D, M, dtype=dtype)
            teacher = jax.eval_shape(problem.init, KEY)
            dataset = jax.eval_shape(lambda teacher: problem.sample(KEY, teacher, 5), teacher)  # noqa: B023
        assert {leaf.dtype for leaf in jax.tree.leaves((teacher, dataset))} == {jnp.dtype(dtype)}
