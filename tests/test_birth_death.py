"""Neuron birth-death against a loop over neurons and exact expectations."""

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

import lax_learning as ll
from lax_learning.data import planted
from tests.compare import assert_close, assert_mean, assert_same, draws_of, member, uses

KEY = jax.random.key(0)
N, INPUTS = 7, 3  # neurons; a size that no other axis has
NUM_DRAWS = 20_000
RNG = np.random.default_rng(0)
PARAMS: Any = {n: np.float32(RNG.uniform(-1, 1, shape)) for n, shape in (("w", (N, INPUTS)), ("c", N))}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "independent": {"slots": "independent", "charge": "split", "center": "mean"},
    "prior": {
        "scheme": "prior", "charge": "split", "probability": "exponential",
        "prior": lambda key, params: jax.tree.map(lambda leaf: 2 * leaf, params),
    },
}  # fmt: skip


def make(alpha: Any = 1.0, leaves: Any = PARAMS, **options: Any) -> ll.Dynamics:
    axes = dict.fromkeys(leaves, 0)
    return ll.birth_death.dynamics(alpha, axes=axes, charges=lambda params: params["c"], **options)


START = make().init(PARAMS)


@partial(jax.jit, static_argnames="name")
def update(name: str, alpha: Any, params: Any, state: Any, rates: Any, u: ll.birth_death.Draws) -> Any:
    """One update by given rates and random numbers: compiled once for each variant."""
    dynamics = make(alpha, draws=lambda key, n: u, **VARIANTS[name])
    return dynamics.update(KEY, params, state, rates=rates)


def resample(choices: Mapping[str, str], alpha: float, v: np.ndarray, u: Any) -> tuple[np.ndarray, ...]:
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


RATES = st.lists(st.sampled_from([-3.0, -1.0, -0.5, -0.25, -0.0, 0.5, 1.0, 3.0]), min_size=N, max_size=N)
UNIFORM = st.lists(st.integers(0, 63), min_size=4 * N, max_size=4 * N)  # u * n is exact
SOME_CLONES = [-3.0, -3.0, -3.0, -3.0, -3.0, 3.0, 0.5]


@pytest.mark.parametrize("name", VARIANTS)
@settings(deadline=None, derandomize=True, database=None, max_examples=8)
@given(rates=RATES, numbers=UNIFORM, alpha=st.sampled_from([0.0, 0.5, 1.0]))
@example(rates=SOME_CLONES, numbers=[63, 0, 1, 0] * N, alpha=1.0)
@example(rates=[3.0] * N, numbers=[0] * 4 * N, alpha=1.0)
@example(rates=[-3.0] * N, numbers=[0] * 4 * N, alpha=1.0)
@example(rates=[np.nan] * N, numbers=[0] * 4 * N, alpha=1.0)
@example(rates=[-0.0, 0.0] * 3 + [-0.0], numbers=[0] * 4 * N, alpha=1.0)
@example(rates=[-rate for rate in SOME_CLONES], numbers=[0] * 3 * N + [0, 63, 32, 0, 10, 20, 30], alpha=1.0)
def test_update_is_a_loop_over_neurons(
    name: str, rates: list[float], numbers: list[int], alpha: float
) -> None:
    choices, v = VARIANTS[name], np.array(rates, np.float32)
    u = ll.birth_death.Draws(*(np.array(numbers, np.float32).reshape(4, N) / 64))
    (params, state), events = update(name, jnp.float32(alpha), PARAMS, START, v, u)
    centred = v - v.mean() if choices.get("center") == "mean" else v
    np.testing.assert_allclose(events.rates, centred, rtol=0, atol=0 if centred is v else 1e-6)
    killed, cloned, origin = resample(choices, alpha, np.asarray(events.rates), u)
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
    np.testing.assert_array_equal(params["w"][fresh], 2 * w[fresh])
    np.testing.assert_array_equal(params["c"][fresh], 0)

    # memory, and once more
    np.testing.assert_array_equal(state.ancestor, origin)
    assert (state.num_killed, state.num_cloned) == (killed.sum(), cloned.sum())
    (_, state), events = update(name, jnp.float32(alpha), params, state, v[::-1], u)
    second = np.asarray(events.origin)
    np.testing.assert_array_equal(state.ancestor, np.where(second < 0, -1, origin[second]))
    assert state.num_killed == killed.sum() + events.killed.sum()
    assert state.num_cloned == cloned.sum() + events.cloned.sum()


V = np.array([0.9, -0.7, 0.4, -0.3, 0.6, -0.8, 0.05], np.float32)


def test_draws_are_uniform_and_independent() -> None:
    """With what the loop above makes of them, this is all that chance decides."""
    drawn = jax.jit(jax.vmap(lambda key: ll.birth_death.draws(key, 5)))(jax.random.split(KEY, NUM_DRAWS))
    u = np.concatenate(drawn, axis=1, dtype=np.float64)
    assert u.shape == (NUM_DRAWS, 4 * 5) and u.min() >= 0 and u.max() < 1
    for power in (1, 2, 4):
        assert_mean(u**power, 1 / (power + 1))
    assert np.abs(np.corrcoef(u.T) - np.eye(20)).max() < 5 / np.sqrt(NUM_DRAWS)


def test_fresh_neurons_are_small_and_normal_in_every_leaf() -> None:
    params = {**PARAMS, "v": PARAMS["w"]}
    dynamics = make(1.0, params, scheme="prior")
    start = dynamics.init(params)

    def one(key: Any) -> Any:
        (after, _), events = dynamics.update(key, params, start, rates=V)
        return after, events.killed

    after, killed = jax.tree.map(np.asarray, draws_of(one, jax.random.key(20), NUM_DRAWS))
    np.testing.assert_array_equal(after["c"], np.where(killed, 0, PARAMS["c"]))
    z, y, both = N * after["w"][killed], N * after["v"][killed], killed[:, 0] & killed[:, 2]
    # The draws that kill are not those that fill: the mean would not be 0.
    for values, expected in ((z, 0), (z**2, 1), (z**4, 3), (z[:, 0] * z[:, 1], 0), (y * z, 0)):
        assert_mean(values, expected)
    assert_mean(N**2 * np.prod(after["w"][both][:, [0, 2]], axis=1), 0)


def test_replacing_neurons_is_a_condition_of_all_members_side_by_side() -> None:
    """Also of members of members; each is as alone, whether it needs new neurons or not."""

    def one(key: Any, alpha: Any, scheme: str = "clone") -> Any:
        return make(alpha, scheme=scheme).update(key, PARAMS, START, rates=V)

    keys, alphas = jax.random.split(KEY, 2), np.array([0, 1, 0], np.float32)
    for scheme, primitive in (("prior", "erf_inv"), ("prior", "scatter-add"), ("clone", "sort")):
        members = jax.vmap(jax.vmap(partial(one, scheme=scheme), (None, 0)), (0, None))
        found = list(uses(jax.make_jaxpr(members)(keys, alphas).jaxpr, primitive))
        assert found and all(found), primitive
    together, alone = jax.jit(lambda *args: (members(*args), one(keys[1], alphas[1])))(keys, alphas)
    assert_same(member(together, (1, 1)), alone)
    assert_same(member(together[0][0], (1, 0)), PARAMS)


def test_rates_are_taken_in_single_precision() -> None:
    """Products that float16 cannot hold, and sums that bfloat16 cannot; a mean of the largest numbers."""

    @jax.jit
    def rates(c: Any) -> Any:
        dynamics = make(1.0, ["c"])
        return dynamics.update(KEY, {"c": c}, dynamics.init({"c": c}), {"c": jnp.abs(c)})[1].rates

    c = np.array([1e-4, -1e-4, 300, -300], np.float16)
    np.testing.assert_array_equal(rates(c), np.float32(c) * np.abs(np.float32(c)))
    # one product of 1 and 256 of 1/256
    np.testing.assert_array_equal(rates(jnp.array([[1.0] + [1 / 16] * 256] * 2, jnp.bfloat16)), 2.0)
    draws = ll.birth_death.Draws(*jnp.zeros((4, N)))
    centred = update("independent", jnp.float32(1), PARAMS, START, np.full(N, 2e38, np.float32), draws)
    np.testing.assert_array_equal(centred[1].rates, 0)


NETWORK: Any = {  # other: neurons of another layer, as many, and leaves of the same names and shapes
    "w": np.ones((N, 3)), "b": np.ones(N), "out": {"w": np.ones((N, 2)), "b": np.ones(2)},
    "more": np.ones((3, N)), "other": {"w": np.ones((N, 3)), "b": np.ones(N)},
}  # fmt: skip
PLACES = {"w": 0, "b": 0, "out": {"w": -2, "b": None}, "more": -1, "other": {"w": None, "b": None}}


def test_neurons_in_the_middle_of_a_network() -> None:
    """With biases, read by two layers; axes are counted from either end."""
    rng = np.random.default_rng(0)
    params, gradients = (
        jax.tree.map(lambda a: np.float32(rng.normal(size=a.shape)), NETWORK) for _ in range(2)
    )
    u = ll.birth_death.Draws(*jnp.asarray(rng.uniform(size=(4, N)), jnp.float32))
    dynamics = ll.birth_death.dynamics(
        0.5, axes=PLACES, charges=lambda p: (p["out"]["w"], p["more"]), charge="split", draws=lambda key, n: u
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
    assert_same((after["w"], after["b"]), (params["w"][origin], params["b"][origin]))
    assert_same((after["out"]["b"], after["other"]), (params["out"]["b"], params["other"]))
    np.testing.assert_allclose(after["out"]["w"], params["out"]["w"][origin] / copies[:, None], rtol=1e-6)
    np.testing.assert_allclose(after["more"], params["more"][:, origin] / copies, rtol=1e-6)


ORIGIN = np.array([0, 0, -1, 3, 1, 5, 6])
follow = partial(ll.birth_death.follow, origin=jnp.asarray(ORIGIN))
LABELS = {"w": "a", "b": "a", "out": "b", "more": "a", "other": "a"}
OPTIMIZERS: list[tuple[optax.GradientTransformation, int, Any]] = [
    (optax.partition({"a": optax.adam(0.1), "b": optax.sgd(0.1, momentum=0.9)}, LABELS), 3 * 2 + 1, "carry"),
    (optax.MultiSteps(optax.adamw(0.1), every_k_schedule=2).gradient_transformation(), 4 * 3, "clear"),
]
"""With the number of moments of neurons, and what becomes of those of copies."""


def numbered(state: Any) -> Any:
    """The state with other entries everywhere, none of them 0."""
    leaves, structure = jax.tree.flatten(state)
    filled = (np.arange(i, i + a.size, dtype=a.dtype).reshape(a.shape) for i, a in enumerate(leaves, 1))
    return jax.tree.unflatten(structure, filled)


@pytest.mark.parametrize(("optimizer", "number", "copies"), OPTIMIZERS)
def test_moments_follow(optimizer: Any, number: int, copies: Any) -> None:
    state = numbered(jax.eval_shape(optimizer.init, NETWORK))
    after = follow(state, params=NETWORK, axes=PLACES, copies=copies)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    moved, leaves = 0, jax.tree_util.tree_leaves_with_path(state)
    for (path, old), new in zip(leaves, jax.tree.leaves(after), strict=True):
        at, expected = jax.tree_util.keystr(path), old
        if N in old.shape and "other" not in at:  # by its size; the library goes by the path
            axis = old.shape.index(N)
            zero = ORIGIN < 0 if copies == "carry" else np.arange(N) != ORIGIN
            kept = np.where(np.expand_dims(zero, 1 - axis) if old.ndim > 1 else zero, 0, 1)
            expected = kept.astype(old.dtype) * np.take(old, np.maximum(ORIGIN, 0), axis)
            moved += 1
        assert_same(new, expected)
    assert moved == number


def test_factored_moments_stay() -> None:
    """Those of a square matrix, in which no length tells rows from columns."""
    params = {"w": jnp.ones((N, N))}
    state = numbered(jax.eval_shape(optax.scale_by_factored_rms(min_dim_size_to_factor=2).init, params))
    assert_same(follow(state, params=params, axes={"w": 0}), state)


D, M = 4, 3
PROBLEM = planted(D, M)


def test_teachers() -> None:
    first, second = draws_of(PROBLEM.init, jax.random.key(1), 5000)
    w, c = np.asarray(first["w"]), np.asarray(second["w"])[:, :, 0]
    norms, bound = np.linalg.norm(w, axis=1), M**-0.5
    np.testing.assert_allclose(norms * np.abs(c), 1, rtol=1e-5)
    assert 0.99 * bound < np.abs(c).max() <= bound
    # Charges are uniform; directions are, too, and know nothing of the charges.
    direction = w / norms[:, None]
    for values, expected in (
        (c, 0), (c**2, bound**2 / 3), (c**4, bound**4 / 5), (c[:, 0] * c[:, 1], 0), (direction, 0),
        (direction[:, :, None] * direction[:, None], np.eye(D)[:, :, None] / D),
        (direction * np.sign(c)[:, None], 0), (direction[:, :, 0] * direction[:, :, 1], 0),
    ):  # fmt: skip
        assert_mean(values, expected)


def test_examples() -> None:
    teacher = PROBLEM.init(KEY)
    x, y = jax.jit(PROBLEM.sample, static_argnums=2)(jax.random.key(2), teacher, NUM_DRAWS)
    assert_close(y, ll.mlp((D, M, 1), b_init=None).apply(teacher, x), ulps=16)
    x = np.asarray(x, np.float64)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-6)
    products = x[:, :, None] * x[:, None]
    # Of the sphere and not of a cube drawn onto it: E x^4 = 3 / (d (d + 2)).
    for values, expected in ((x, 0), (products, np.eye(D) / D), (x**4, 3 / (D * (D + 2)))):
        assert_mean(values, expected)
