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
POWERS: Any = np.float32(2.0 ** RNG.integers(-2, 3, (INPUTS + 1, N)))  # charges whose products are exact
PARAMS: Any = {
    "w": np.float32(RNG.uniform(-1, 1, (N, INPUTS))), "b": np.ones(INPUTS, np.float32), "c": -POWERS[0],
    "out": POWERS[1:], "none": None,
}  # fmt: skip
AXES = {"w": -2, "b": None, "c": 0, "out": -1, "none": None, "v": 0}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "independent": {"slots": "independent", "charge": "split", "center": "mean"},
    "prior": {
        "scheme": "prior", "charge": "split", "probability": "exponential",
        "prior": lambda key, params: jax.tree.map(lambda leaf: 2 * leaf, params),
    },
}  # fmt: skip


def make(alpha: Any = 1.0, leaves: Any = PARAMS, **options: Any) -> ll.Dynamics:
    axes = {name: AXES[name] for name in leaves}

    def charges(params: Any) -> Any:
        return [params[name] for name in ("c", "out") if name in params]

    return ll.birth_death.dynamics(alpha, axes=axes, charges=charges, **options)


START = make().init(PARAMS)


@partial(jax.jit, static_argnames="name")
def update(name: str, alpha: Any, params: Any, state: Any, u: Any, gradients: Any, rates: Any) -> Any:
    """One update by given random numbers: compiled once for each variant, by gradients and by rates."""
    dynamics = make(alpha, draws=lambda key, n: u, **VARIANTS[name])
    return dynamics.update(KEY, params, state, gradients, rates=rates)


def resample(choices: Mapping[str, str], alpha: Any, v: np.ndarray, u: Any) -> tuple[np.ndarray, ...]:
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
@example(rates=SOME_CLONES, numbers=[63, 0, 28, 0] * N, alpha=1.0)  # 28 / 64 is between two odds of 0.5
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
    speed = np.float32(alpha)
    # Half of a rate comes from each of two charges; gradients of other leaves do not count.
    gradients = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), PARAMS)
    gradients["c"], gradients["out"] = v / 2 / PARAMS["c"], np.zeros_like(PARAMS["out"])
    gradients["out"][1] = v / 2 / PARAMS["out"][1]
    (params, state), events = update(name, speed, PARAMS, START, u, gradients, None)
    centred = v - v.mean() if choices.get("center") == "mean" else v
    np.testing.assert_allclose(events.rates, centred, rtol=0, atol=0 if centred is v else 1e-6)
    killed, cloned, origin = resample(choices, speed, np.asarray(events.rates), u)
    np.testing.assert_array_equal(events.killed, killed)
    np.testing.assert_array_equal(events.cloned, cloned)
    np.testing.assert_array_equal(events.origin, origin)

    fresh = origin < 0
    assert not np.isin(origin, np.flatnonzero(killed)).any()
    assert (origin[cloned] == np.flatnonzero(cloned)).all(), "a clone was overwritten"
    copies = np.bincount(origin[~fresh], minlength=N) if choices.get("charge") == "split" else np.ones(N)
    shares = np.where(fresh, 0, 1 / np.maximum(copies, 1)[origin])
    np.testing.assert_array_equal(params["w"], np.where(fresh[:, None], 2 * PARAMS["w"], PARAMS["w"][origin]))
    np.testing.assert_array_equal(params["b"], PARAMS["b"])
    np.testing.assert_allclose(params["c"], PARAMS["c"][origin] * shares, rtol=1e-6)
    np.testing.assert_allclose(params["out"], PARAMS["out"][:, origin] * shares, rtol=1e-6)

    # memory, and once more
    np.testing.assert_array_equal(state.ancestor, origin)
    assert (state.num_killed, state.num_cloned) == (killed.sum(), cloned.sum())
    (_, state), events = update(name, speed, params, state, u, None, v[::-1])
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
    for scheme, primitive in (("prior", "erf_inv"), ("clone", "sort")):
        members = jax.vmap(jax.vmap(partial(one, scheme=scheme), (None, 0)), (0, None))
        found = list(uses(jax.make_jaxpr(members)(keys, alphas).jaxpr, primitive))
        assert found and all(found), primitive
    together, alone = jax.jit(lambda *args: (members(*args), one(keys[1], alphas[1])))(keys, alphas)
    assert_same(member(together, (1, 1)), alone)
    assert_same(member(together[0][0], (1, 0)), PARAMS)


def test_rates_are_taken_in_single_precision() -> None:
    """Products that float16 cannot hold, and sums that bfloat16 cannot; a mean of the largest numbers."""

    @jax.jit
    def rates_of(c: Any) -> Any:
        dynamics = make(1.0, ["c"])
        return dynamics.update(KEY, {"c": c}, dynamics.init({"c": c}), {"c": jnp.abs(c)})[1].rates

    c = np.array([1e-4, -1e-4, 300, -300], np.float16)
    np.testing.assert_array_equal(rates_of(c), np.float32(c) * np.abs(np.float32(c)))
    # one product of 1 and 256 of 1/256
    np.testing.assert_array_equal(rates_of(jnp.array([[1.0] + [1 / 16] * 256] * 2, jnp.bfloat16)), 2.0)
    draws = ll.birth_death.Draws(*jnp.zeros((4, N)))
    rates = np.full(N, 2e38, np.float32)
    centred = update("independent", np.float32(1), PARAMS, START, draws, None, rates)
    np.testing.assert_array_equal(centred[1].rates, 0)


NETWORK: Any = {  # other: neurons of another layer, as many, and leaves of the same names and shapes
    "w": np.ones((N, 3)), "b": np.ones(N), "out": {"w": np.ones((N, 2)), "b": np.ones(2)},
    "more": np.ones((3, N)), "none": None, "other": {"w": np.ones((N, 3)), "b": np.ones(N)},
}  # fmt: skip
OTHER = {"w": None, "b": None}
PLACES = {"w": 0, "b": 0, "out": {"w": -2, "b": None}, "more": -1, "none": None, "other": OTHER}


ORIGIN = np.array([0, 0, -1, 3, 1, 5, 6])
follow = partial(ll.birth_death.follow, origin=jnp.asarray(ORIGIN))
LABELS = {"w": "a", "b": "a", "out": "b", "more": "a", "none": None, "other": "a"}
OPTIMIZERS: list[tuple[optax.GradientTransformation, int, Any]] = [
    (optax.partition({"a": optax.adam(0.1), "b": optax.sgd(0.1, momentum=0.9)}, LABELS), 3 * 2 + 1, "carry"),
    (optax.MultiSteps(optax.adamw(0.1), every_k_schedule=2).gradient_transformation(), 4 * 3, "clear"),
]
"""With the number of moments of neurons, and what becomes of those of copies."""


def numbered(init: Any, params: Any) -> Any:
    """A state with other entries everywhere, none of them 0."""
    leaves, structure = jax.tree.flatten(jax.eval_shape(init, params))
    filled = (np.arange(i, i + a.size, dtype=a.dtype).reshape(a.shape) for i, a in enumerate(leaves, 1))
    return jax.tree.unflatten(structure, filled)


@pytest.mark.parametrize(("optimizer", "number", "copies"), OPTIMIZERS)
def test_moments_follow(optimizer: Any, number: int, copies: Any) -> None:
    state = numbered(optimizer.init, NETWORK)
    after = follow(state, params=NETWORK, axes=PLACES, copies=copies)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    moved, leaves = 0, jax.tree_util.tree_leaves_with_path(state)
    for (path, old), new in zip(leaves, jax.tree.leaves(after), strict=True):
        at, expected = jax.tree_util.keystr(path), old
        if N in old.shape and "other" not in at:  # by its size; the library goes by the path
            rows = np.moveaxis(old, old.shape.index(N), 0)[np.maximum(ORIGIN, 0)]
            rows[ORIGIN < 0 if copies == "carry" else np.arange(N) != ORIGIN] = 0
            expected = np.moveaxis(rows, 0, old.shape.index(N))
            moved += 1
        assert_same(new, expected)
    assert moved == number


def test_factored_moments_stay() -> None:
    """Those of a square matrix, in which no length tells rows from columns."""
    params = {"w": jnp.ones((N, N))}
    state = numbered(optax.scale_by_factored_rms(min_dim_size_to_factor=2).init, params)
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
    assert_mean(x, 0)
    assert_mean(x[:, :, None] * x[:, None], np.eye(D) / D)
    assert_mean(x**4, 3 / (D * (D + 2)))  # of the sphere and not of a cube drawn onto it
