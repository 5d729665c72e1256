"""Neuron birth-death against a loop over neurons, against exact expectations and against itself."""

from collections.abc import Mapping
from functools import partial
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
from tests.compare import assert_close, assert_same, slow_but, uses

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
    """Returns the killed, the cloned, and the origin of each neuron."""

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
@settings(deadline=None, derandomize=True, database=None, max_examples=8)
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

    fresh = origin < 0
    assert not np.isin(origin, np.flatnonzero(killed)).any()
    assert (origin[cloned] == np.flatnonzero(cloned)).all(), "a clone was overwritten"
    # rows
    w, c = np.asarray(PARAMS["w"]), np.asarray(PARAMS["c"])
    copies = np.bincount(origin[~fresh], minlength=N) if choices.get("charge") == "split" else np.ones(N)
    np.testing.assert_array_equal(params["w"][~fresh], w[origin[~fresh]])
    np.testing.assert_allclose(params["c"][~fresh], (c / np.maximum(copies, 1))[origin[~fresh]], rtol=1e-6)
    np.testing.assert_array_equal(params["c"][fresh], 0)
    assert np.isfinite(params["w"]).all()

    # memory, and once more
    np.testing.assert_array_equal(state.ancestor, origin)
    assert (state.num_killed, state.num_cloned) == (killed.sum(), cloned.sum())
    (_, state), events = update(VARIANTS[name], jnp.float32(alpha), params, state, v[::-1], u)
    second = np.asarray(events.origin)
    np.testing.assert_array_equal(state.ancestor, np.where(second < 0, -1, origin[second]))
    assert state.num_killed == killed.sum() + events.killed.sum()
    assert state.num_cloned == cloned.sum() + events.cloned.sum()


@pytest.mark.parametrize("name", VARIANTS)
def test_nothing_happens(name: str) -> None:
    """With alpha 0, rates of 0 or NaN, or where everybody would be killed; and nothing is compiled again."""
    params = {"w": PARAMS["w"].at[0, 0].set(-0.0), "c": PARAMS["c"].at[1].set(jnp.nan)}
    for alpha, rates in (
        (0.0, [3.0, -3.0] * 4),
        (1.0, [0.0, -0.0] * 4),
        (1.0, [np.nan] * N),
        (1.0, [3.0] * N),
    ):
        outcome = update(VARIANTS[name], jnp.float32(alpha), params, START, vector(*rates[:N]), draws())
        (after, state), events = outcome
        bits = partial(jax.tree.map, lambda a: a.view(jnp.int32))
        assert_same(bits((after, state)), bits((params, START)))
        assert not events.killed.any() and not events.cloned.any()
        np.testing.assert_array_equal(events.origin, np.arange(N))
    assert TRACES.count(VARIANTS[name]) == 1


# --- expectations


@partial(jax.jit, static_argnames="choices")
def many(choices: Options, alpha: Any, rates: Any) -> Any:
    """Events and params of many keys, from the library's own random numbers."""
    dynamics = make(choices, alpha)

    def one(key: Any) -> Any:
        (params, _), events = dynamics.update(key, PARAMS, START, rates=rates)
        return params, events

    return jax.vmap(one)(jax.random.split(jax.random.key(20), NUM_DRAWS))


CENTRED = options(slots="independent", probability="exponential", center="mean")
PRIOR = options(scheme="prior", probability="exponential")
V = np.array([0.9, -0.7, 0.4, -0.3, 0.6, -0.8, 0.05])


def deviation(samples: np.ndarray, expected: Any) -> np.ndarray:
    """Distance of the mean from what is expected, in standard errors of each coordinate."""
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    difference = np.abs(samples.mean(axis=0) - expected)
    return np.where(
        error > 0, difference / np.where(error > 0, error, 1), np.where(difference < 1e-6, 0, np.inf)
    )


def test_copies_are_as_many_as_by_other_draws() -> None:
    """In the mean over the library's own draws, and over those of the loop."""
    rng, v = np.random.default_rng(0), np.asarray(V - V.mean(), np.float32)
    u = rng.uniform(size=(2000, 4, N)).astype(np.float32)
    loop = np.stack([resample(dict(CENTRED), 1.0, v, ll.birth_death.Draws(*each))[2] for each in u])
    _, events = many(CENTRED, jnp.float32(1), jnp.asarray(V, jnp.float32))
    np.testing.assert_allclose(events.rates, np.tile(v, (NUM_DRAWS, 1)), rtol=0, atol=1e-6)
    copies, expected = ((np.asarray(o)[:, :, None] == np.arange(N)).sum(1) for o in (events.origin, loop))
    error = np.sqrt(copies.var(axis=0) / len(copies) + expected.var(axis=0) / len(expected))
    assert np.all(np.abs(copies.mean(axis=0) - expected.mean(axis=0)) <= SIGMAS * error)
    assert deviation(copies, 1).max() > 2 * SIGMAS


def test_draws_are_uniform_and_independent() -> None:
    """With what the loop above makes of them, and the copies, this is all that chance decides."""
    drawn = jax.jit(jax.vmap(lambda key: ll.birth_death.draws(key, 5)))(jax.random.split(KEY, NUM_DRAWS))
    u = np.concatenate(drawn, axis=1, dtype=np.float64)
    assert u.shape == (NUM_DRAWS, 4 * 5) and u.min() >= 0 and u.max() < 1
    for power in (1, 2, 4):
        assert deviation(u**power, 1 / (power + 1)).max() < SIGMAS
    assert np.abs(np.corrcoef(u.T) - np.eye(20)).max() < SIGMAS / np.sqrt(NUM_DRAWS)


def test_fresh_neurons_are_small_and_normal() -> None:
    params, events = many(PRIOR, jnp.float32(1.0), jnp.asarray(V, jnp.float32))
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


def test_lazily_is_and_stays_a_condition_of_every_member() -> None:
    """In a scan of members side by side too; needed in one row and not in the other."""
    needed = np.array([[True, False, True], [False, False, False]])
    xs, y = (np.random.default_rng(i).normal(size=(2, 3, 5)).astype(np.float32) for i in range(2))

    def run(condition: Any, needed: Any, xs: Any, y: Any) -> Any:
        def many(y: Any, row: Any) -> Any:
            return y + 1, jax.vmap(partial(condition, sort_twice, leave))(*row, y)

        return lax.scan(many, y, (needed, xs))

    def lazy(do: Any, leave: Any, needed: Any, *operands: Any) -> Any:
        return lazily(needed, do, leave, *operands)

    def plain(do: Any, leave: Any, needed: Any, *operands: Any) -> Any:
        return lax.cond(needed, do, leave, *operands)

    operands = needed, xs, y[0]
    assert_same(*jax.jit(lambda *operands: (run(lazy, *operands), run(plain, *operands)))(*operands))
    for condition, stays in ((lazy, True), (plain, False)):
        found = list(uses(jax.make_jaxpr(partial(run, condition))(*operands).jaxpr, "sort"))
        assert found and all(found) == any(found) == stays


@pytest.mark.parametrize("name", ["default", "prior"])
def test_replacing_neurons_stays_conditional(name: str) -> None:
    def members(keys: Any, rates: Any) -> Any:
        dynamics = make(VARIANTS[name])
        return jax.vmap(lambda key: dynamics.update(key, PARAMS, START, rates=rates)[0][0])(keys)

    jaxpr = jax.make_jaxpr(members)(jax.random.split(KEY, 3), vector(*V)).jaxpr
    for primitive in ("sort", "scatter-add") if name == "default" else ("erf_inv", "scatter-add"):
        found = list(uses(jaxpr, primitive))
        assert found and all(found), primitive


# --- the contract

CONTRACT = {name: VARIANTS[name] for name in ("distinct-split", "independent", "prior")}
KEYS = jax.random.split(KEY, 5)


@pytest.mark.parametrize("name", slow_but(("distinct-split",), CONTRACT))
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

    @jax.jit
    @jax.vmap
    def run(alpha: Any) -> Any:
        return lax.scan(partial(step, alpha), (PARAMS, START), KEYS)

    assert_close(run(alphas), loop, ulps=4)


def test_rates_are_taken_in_single_precision() -> None:
    """Products that float16 cannot hold, and sums that bfloat16 cannot; a mean of the largest numbers."""

    @jax.jit
    def rates(c: Any) -> Any:
        dynamics = ll.birth_death.dynamics(1.0, axes={"c": 0}, charges=charges)
        return dynamics.update(KEY, {"c": c}, dynamics.init({"c": c}), {"c": jnp.abs(c)})[1].rates

    c = jnp.array([1e-4, -1e-4, 300, -300], jnp.float16)
    np.testing.assert_array_equal(rates(c), np.float32(c) * np.abs(np.float32(c)))
    # 256 products of 1/256 and one of 1
    c = jnp.concatenate([jnp.ones((2, 1)), jnp.full((2, 256), 1 / 16)], axis=1).astype(jnp.bfloat16)
    np.testing.assert_array_equal(rates(c), 2.0)
    dynamics = make(options(center="mean"))
    update = jax.jit(lambda v: dynamics.update(KEY, PARAMS, START, rates=v)[1].rates)
    np.testing.assert_array_equal(update(np.full(N, 2e38, np.float32)), 0)


# --- pytrees


def test_neurons_in_the_middle_of_a_network() -> None:
    """With biases, read by two layers; axes are counted from either end."""
    rng = np.random.default_rng(0)
    shapes = {"in": {"w": (4, N), "b": (N,)}, "out": {"w": (N, 2), "b": (2,)}, "more": (3, N)}
    axes = {"in": {"w": 1, "b": 0}, "out": {"w": -2, "b": None}, "more": -1}
    params, gradients = (
        jax.tree.map(
            lambda s: rng.normal(size=s).astype(np.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
        )
        for _ in range(2)
    )
    u = ll.birth_death.Draws(*jnp.asarray(rng.uniform(size=(4, N)), jnp.float32))
    dynamics = ll.birth_death.dynamics(
        0.5, axes=axes, charges=lambda p: (p["out"]["w"], p["more"]), charge="split", draws=lambda key, n: u
    )
    state = dynamics.init(params)
    np.testing.assert_array_equal(state.ancestor, np.arange(N))
    (after, _), events = jax.jit(dynamics.update)(KEY, params, state, gradients)

    products = jax.tree.map(np.multiply, params, gradients)
    rates = products["out"]["w"].sum(axis=1) + products["more"].sum(axis=0)
    np.testing.assert_allclose(events.rates, rates, rtol=1e-5)
    killed, cloned, origin = resample({}, 0.5, rates, u)
    np.testing.assert_array_equal(events.origin, origin)
    assert killed.any() and cloned.any()
    copies = np.bincount(origin, minlength=N)[origin]
    assert_same(after["in"], jax.tree.map(lambda a: a[..., origin], params["in"]))
    assert_same(after["out"]["b"], params["out"]["b"])
    np.testing.assert_allclose(after["out"]["w"], params["out"]["w"][origin] / copies[:, None], rtol=1e-6)
    np.testing.assert_allclose(after["more"], params["more"][:, origin] / copies, rtol=1e-6)


def test_leaves_of_a_prior_are_drawn_independently() -> None:
    params = {"a": PARAMS["c"], "c": PARAMS["c"], "b": PARAMS["c"], "other": jnp.ones(N)}
    axes = {"a": 0, "b": 0, "c": 0, "other": None}
    dynamics = ll.birth_death.dynamics(
        0.5, axes=axes, charges=charges, scheme="prior", draws=lambda key, n: draws(kill=jnp.arange(n) / n)
    )
    step = jax.jit(partial(dynamics.update, params=params, state=dynamics.init(params), rates=jnp.ones(N)))
    ((after, _), events), ((again, _), _) = step(KEY), step(jax.random.key(1))
    fresh = np.asarray(events.killed)
    assert 1 < fresh.sum() < N
    for one, other in ((after["a"], after["b"]), (after["a"], again["a"])):
        assert (one != other)[fresh].all()
    assert_same((after["other"], after["a"][~fresh]), (params["other"], params["a"][~fresh]))


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


LABELS = {"in": "a", "out": "b", "other": "a"}
OPTIMIZERS: dict[str, tuple[optax.GradientTransformation, int]] = {  # and how many moments a weight has
    "adam": (optax.adam(0.1), 2),
    "chain": (optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(1, 0, 9))), 2),
    "partition": (optax.partition({"a": optax.adam(0.1), "b": optax.sgd(0.1, momentum=0.9)}, LABELS), -1),
    "steps": (optax.MultiSteps(optax.adam(0.1), every_k_schedule=2).gradient_transformation(), 3),
}


def numbered(state: Any) -> Any:
    """The state with other entries everywhere, none of them 0."""
    leaves, structure = jax.tree.flatten(state)
    filled = [
        jnp.asarray(1 + i + np.arange(np.size(a)).reshape(np.shape(a)), a.dtype) for i, a in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, filled)


@pytest.mark.parametrize(
    ("name", "copies"), [("adam", "carry"), ("partition", "carry"), ("chain", "clear"), ("steps", "clear")]
)
def test_moments_follow(name: str, copies: Any) -> None:
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
    followed = [0, 0, 0, 3, 1, 5, 6]
    for whole, part in ((None, 0), (0, None)):
        axes = {"w": whole, "part": {"w": part}}
        after = ll.birth_death.follow(optax.TraceState(moments), jnp.asarray(ORIGIN), moments, axes).trace
        np.testing.assert_array_equal(after["w"], moments["w"] if whole is None else followed)
        np.testing.assert_array_equal(after["part"]["w"], moments["w"] if part is None else followed)


@pytest.mark.parametrize(("axis", "size"), [(0, N), (-1, 5)])
def test_factored_moments_stay(axis: int, size: int) -> None:
    """Also those of a square matrix, in which no length tells rows from columns."""
    params = {"w": jnp.ones((N, size) if axis == 0 else (size, N))}
    state = numbered(jax.eval_shape(optax.scale_by_factored_rms(min_dim_size_to_factor=2).init, params))
    assert_same(ll.birth_death.follow(state, jnp.asarray(ORIGIN), params, {"w": axis}), state)


# --- the planted problem

D, M = 4, 3
PROBLEM = planted(D, M)


def test_teachers() -> None:
    keys = jax.random.split(jax.random.key(1), 5000)
    first, second = jax.jit(jax.vmap(PROBLEM.init))(keys)
    w, c = np.asarray(first["w"]), np.asarray(second["w"])[:, :, 0]
    norms, bound = np.linalg.norm(w, axis=1), M**-0.5
    np.testing.assert_allclose(norms * np.abs(c), 1, rtol=1e-5)
    assert 0.99 * bound < np.abs(c).max() <= bound
    # Charges are uniform; directions are, too, and know nothing of the charges.
    direction = w / norms[:, None]
    for values, expected in (
        (c, 0),
        (c**2, bound**2 / 3),
        (c**4, bound**4 / 5),
        (direction, 0),
        (direction[:, :, None] * direction[:, None], np.eye(D)[:, :, None] / D),
        (direction * np.sign(c)[:, None], 0),
        (direction[:, :, 0] * direction[:, :, 1], 0),
        (c[:, 0] * c[:, 1], 0),
    ):
        expected = np.broadcast_to(expected, values.shape[1:]).ravel()
        assert deviation(values.reshape(5000, -1), expected).max() < SIGMAS


def test_examples() -> None:
    teacher = PROBLEM.init(KEY)
    x, y = jax.jit(PROBLEM.sample, static_argnums=2)(jax.random.key(2), teacher, NUM_DRAWS)
    assert_close(y, ll.mlp((D, M, 1), b_init=None).apply(teacher, x), ulps=16)
    x = np.asarray(x, np.float64)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-6)
    products = (x[:, :, None] * x[:, None]).reshape(NUM_DRAWS, -1)
    # Of the sphere and not of a cube drawn onto it: E x^4 = 3 / (d (d + 2)).
    for values, expected in ((x, 0), (products, np.eye(D).ravel() / D), (x**4, 3 / (D * (D + 2)))):
        assert deviation(values, expected).max() < SIGMAS
