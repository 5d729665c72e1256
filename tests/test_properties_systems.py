"""One property a kind, over k-cap networks, birth-death, decorrelation and the symbolic critic."""

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import lax_learning as ll
from experiments.decorrelation import notebook
from lax_learning import plasticity, symbolic
from lax_learning.plasticity import passes as passes_module
from lax_learning.symbolic import ExpressionError, parse_library

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (6, 3))
Y = jnp.array([0, 1, 1, 0, 1, 0])
KEY_2 = jax.random.key(2)


def fresh() -> Any:
    """A key that has not been used: with key checks on, JAX remembers."""
    return jax.random.key(2)


# --- update functions: (floats that go in -> everything that comes out)


def passes(network: plasticity.KCapNetwork, dtype: Any) -> tuple[Any, Any]:
    """Samples and tables in, state and logits out."""
    state, tables = network.init(KEY), network.init_tables(KEY_2)

    def call(xs: Any, tables: Any) -> Any:
        after, prediction, diagnostics = plasticity.plastic_pass(network, tables, state, xs, Y)
        return [layer["w"] for layer in after[1:]], diagnostics.response.logits, prediction

    return call, (X.astype(dtype), tables)


def learned(dtype: Any) -> tuple[Any, Any]:
    network = plasticity.k_cap_mlp((3, 6, 6, 2), 3, dtype=dtype)
    state = network.init(KEY)
    rule, params = plasticity.meta_rule(network, state), plasticity.meta_init(network, state)(KEY_2)
    return lambda x, params: rule.value_and_grad(fresh(), params, (), x, jnp.eye(2)[Y])[:2], (
        X.astype(dtype),
        params,
    )


def resampled(dtype: Any, **options: Any) -> tuple[Any, Any]:
    params = {"w": jnp.ones((5, 3), dtype), "c": jnp.linspace(-1, 1, 5).astype(dtype)}
    dynamics = ll.birth_death.dynamics(1.0, axes={"w": 0, "c": 0}, charges=lambda p: p["c"], **options)
    state = dynamics.init(params)

    def call(gradients: Any, params: Any) -> Any:
        (params, _), events = dynamics.update(fresh(), params, state, gradients)
        return events.rates, params

    return call, (jax.tree.map(jnp.ones_like, params), params)


def decorrelated(dtype: Any, **options: Any) -> tuple[Any, Any]:
    dynamics = ll.decorrelation.dynamics(0.1, **options)
    state = dynamics.init(3)
    return lambda x, r: dynamics.update(fresh(), state._replace(R=r), x), (X.astype(dtype), state.R)


def ruled(dtype: Any) -> tuple[Any, Any]:
    network = ll.mlp((3, 4, 2), dtype=dtype)
    rule = ll.decorrelation.rule(
        lambda network: ll.backprop(network, ll.squared_error),
        network,
        ll.decorrelation.dynamics(0.1, bias=True),
    )
    params = network.init(KEY)
    state = rule.init(KEY_2, params, X)
    y = jnp.ones((6, 2), dtype)
    return lambda x, params: rule.value_and_grad(fresh(), params, state, x, y), (X.astype(dtype), params)


def criticised(dtype: Any) -> tuple[Any, Any]:
    judge = symbolic.critic(3, hidden=(4,), dtype=dtype)
    optimizer = optax.chain(optax.add_decayed_weights(1e-7), optax.adam(1e-3))
    step = symbolic.critic_step(judge, optimizer, penalty=0.1)
    state = symbolic.init_critic(KEY, judge, optimizer)

    def call(real: Any, params: Any) -> Any:
        after, metrics = step(fresh(), state._replace(params=params), real, real[::-1] + 1)
        return after.params, metrics.loss_real, metrics.penalty

    return call, (X.astype(dtype), state.params)


UPDATES: dict[str, Any] = {
    "k_cap_mlp": lambda dtype: passes(plasticity.k_cap_mlp((3, 6, 6, 2), 3, dtype=dtype), dtype),
    "multiplicative": lambda dtype: passes(
        plasticity.k_cap_mlp(
            (3, 6, 6, 2), 3, scheme=plasticity.Scheme(update="multiplicative", rows="two"), dtype=dtype
        ),
        dtype,
    ),
    "k_cap_recurrent": lambda dtype: passes(plasticity.k_cap_recurrent((3, 6, 2), 3, dtype=dtype), dtype),
    "meta_rule": learned,
    "clone": resampled,
    "prior": partial(resampled, scheme="prior"),
    "decorrelation": decorrelated,
    "decorbp": partial(decorrelated, variant="decorbp", bias=True),
    "every": partial(decorrelated, every=2),
    "decorrelated_rule": ruled,
    "critic_step": criticised,
}
PRECISIONS = [jnp.float32, jnp.bfloat16, jnp.float16]


@pytest.mark.parametrize("name", UPDATES)
def test_modes_of_jax(name: str) -> None:
    """Strict promotion, NaN and key checks: as without them."""
    call, (x, params) = UPDATES[name](jnp.float32)
    plain = jax.jit(call)(x, params)
    with jax.numpy_dtype_promotion("strict"), jax.debug_nans(True), jax.debug_key_reuse(True):
        strict = jax.jit(call)(x, params)
    jax.tree.map(np.testing.assert_array_equal, plain, strict)


@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize("dtype", PRECISIONS[1:])
def test_half_precision(name: str, dtype: Any) -> None:
    """Strict promotion also where R or moments of an optimiser are in float32; params keep their dtype."""
    call, (x, params) = UPDATES[name](dtype)
    with jax.numpy_dtype_promotion("strict"):
        found = jax.eval_shape(call, x, params)
    kept = jax.eval_shape(lambda p: p, params)
    same = [jax.tree.structure(part) == jax.tree.structure(kept) for part in found]
    for part, alike in zip(found, same, strict=True):
        if alike and len(jax.tree.leaves(part)) > 1:
            assert jax.tree.map(lambda a: a.dtype, part) == jax.tree.map(lambda a: a.dtype, kept)


@pytest.mark.parametrize("name", UPDATES)
def test_reverse_mode(name: str) -> None:
    call, args = UPDATES[name](jnp.float32)

    def total(*args: Any) -> Any:
        floats = [a for a in jax.tree.leaves(call(*args)) if jnp.issubdtype(a.dtype, jnp.floating)]
        return sum(jnp.sum(jnp.where(jnp.isnan(a), 0, a)) for a in floats)

    assert all(np.isfinite(g).all() for g in jax.tree.leaves(jax.jit(jax.grad(total, (0, 1)))(*args)))


@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize("where", ["x", "params"])
def test_nan_in_nan_out(name: str, where: str) -> None:
    call, (x, params) = UPDATES[name](jnp.float32)
    spoil = partial(jax.tree.map, lambda a: jnp.full_like(a, jnp.nan))
    found = jax.jit(call)(*((spoil(x), params) if where == "x" else (x, spoil(params))))
    assert (
        any(np.isnan(a).any() for a in jax.tree.leaves(found[0]) if jnp.issubdtype(a.dtype, jnp.floating))
        or np.isnan(ravel_pytree(found[1])[0]).any()
    )


def test_nan_is_no_label() -> None:
    for name in ("k_cap_mlp", "k_cap_recurrent"):
        call, (x, tables) = UPDATES[name](jnp.float32)
        prediction = call(x.at[2].set(jnp.nan), tables)[-1]
        np.testing.assert_array_equal(prediction == -1, np.arange(6) == 2)


# --- structure


CONTAINERS: dict[str, Any] = {
    "lists": lambda layers: [dict(layer) for layer in layers],
    "ordered": lambda layers: [OrderedDict(sorted(layer.items(), reverse=True)) for layer in layers],
}


@pytest.mark.usefixtures("as_a_user_sees_it")
@pytest.mark.parametrize("kind", CONTAINERS)
def test_containers_stay(kind: str) -> None:
    contain = CONTAINERS[kind]
    network = ll.mlp((3, 4, 2))
    rule = ll.decorrelation.rule(
        lambda m: ll.backprop(m, ll.squared_error), network, ll.decorrelation.dynamics(0.1)
    )
    params = contain(network.init(KEY))
    layers = rule.init(KEY, params, X).layers
    assert jax.tree.structure(ll.decorrelation.fold(network, params, layers, X)) == jax.tree.structure(params)

    k_cap = plasticity.k_cap_mlp((3, 6, 6, 2), 3)
    tables, synapses = k_cap.init_tables(KEY), contain(k_cap.init(KEY))
    for after in (
        plasticity.plastic_pass(k_cap, tables, synapses, X, Y)[0],
        plasticity.table_plasticity(k_cap).update(tables, synapses, X[0], 1)[0],
        plasticity.learn_episode(k_cap, tables, synapses, X, Y),
        plasticity.with_params(synapses, plasticity.MetaParams(tables, synapses[0]["w"])),
        k_cap.reset(synapses),
    ):
        assert jax.tree.structure(after) == jax.tree.structure(synapses)


@pytest.mark.parametrize("scheme", ["clone", "prior"])
def test_none_leaves(scheme: str) -> None:
    """As Equinox has them: the same as without."""
    full = {"w": jax.random.normal(KEY, (5, 3)), "c": jnp.linspace(-1, 1, 5)}
    axes = {"w": 0, "c": 0}

    def run(params: Any, axes: Any) -> Any:
        dynamics = ll.birth_death.dynamics(1.0, axes=axes, charges=lambda p: p["c"], scheme=scheme)
        after = dynamics.update(KEY, params, dynamics.init(params), jax.tree.map(jnp.ones_like, params))
        optimizer_state = optax.adam(0.1).init(params)
        return after[0][0], ll.birth_death.follow(optimizer_state, after[1].origin, params, axes)

    after, moments = run(full, axes)
    params, with_none = run({**full, "b": None}, {**axes, "b": None})
    assert params["b"] is None and with_none[0].mu["b"] is None
    jax.tree.map(np.testing.assert_array_equal, after, {name: params[name] for name in full})
    jax.tree.map(np.testing.assert_array_equal, moments[0].mu["w"], with_none[0].mu["w"])


# --- scale, range and precision


@settings(deadline=None, derandomize=True, database=None, max_examples=25)
@given(exponent=st.integers(-30, 30), count=st.sampled_from([2, 12]))
def test_decorrelation_loss_over_the_range(exponent: int, count: int) -> None:
    """As in double precision, where float32 has the number; never NaN or below 0."""
    z = np.asarray(np.asarray(jax.random.normal(KEY, (12, 4)))[:count] * 10.0**exponent, np.float32)
    c = np.asarray(z.T, np.float64) @ np.asarray(z, np.float64) / count
    off, diagonal = np.sum((c - np.diag(np.diag(c))) ** 2), np.sum((np.diag(c) - 1) ** 2)
    expected = (0.5 * off + 0.5 * diagonal) / 16
    loss = float(ll.decorrelation.loss(z))
    assert loss >= 0
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(loss, np.float32(expected), rtol=1e-4)


def test_decorrelation_loss_does_not_cancel() -> None:
    """Off-diagonal moments of 1 beside variances of 1e6: a subtraction of squares would lose them."""
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(200, 4)))[0] * math.sqrt(200)
    mixed = 1e3 * q @ np.linalg.cholesky(np.eye(4) * (1 - 1e-6) + 1e-6).T
    z = np.asarray(mixed, np.float32)
    c = np.asarray(z.T, np.float64) @ np.asarray(z, np.float64) / 200
    expected = np.sum((c - np.diag(np.diag(c))) ** 2) / 16
    # Every entry off the diagonal is a sum of 200 products of 1e6, each rounded.
    error = 2 * 12 / 16 * (0.06 + 200 * 2**-24 * 1e6 / 200) + 0.05
    assert abs(float(ll.decorrelation.loss(z, kappa=0.0)) - expected) < error < expected


Entry = Callable[[float], float]
NEARLY_DEAD: dict[str, tuple[Callable[[], ll.Dynamics], Entry, Entry]] = {
    "paper": (
        lambda: ll.decorrelation.dynamics(0.1, kappa=1.0), lambda s: 1 + 0.1 * (1 - s), lambda s: 1.0
    ),
    "decorbp": (
        lambda: ll.decorrelation.dynamics(0.1, kappa=1.0, variant="decorbp"),
        lambda s: 1 + 0.1 * (1 - s), lambda s: 1.0,
    ),
    "notebook": (lambda: notebook.dynamics(0.1), lambda s: 1 + 0.1 * (1 - s) / s, lambda s: 1.0),
    "scaled": (
        lambda: notebook.dynamics(0.1, scaled=True), lambda s: (1 - 0.1 * s) / s, lambda s: 1 - 0.1 * s
    ),
}  # fmt: skip
"""Dynamics, and what becomes of an entry 1 of R by the mean square of a living and of a dead input."""


@pytest.mark.parametrize("name", NEARLY_DEAD)
@pytest.mark.parametrize("square", [0.5e-8, 2e-8])
def test_inputs_that_are_nearly_dead(name: str, square: float) -> None:
    """An input with a mean square below 1e-8 is left alone; above, it is treated as any other."""
    make, alive, dead = NEARLY_DEAD[name]
    x = np.float32(np.stack([np.ones(8), np.sqrt(square) * np.resize([1, -1], 8)], axis=1))
    r = make().update(KEY, make().init(2), x)[0].R[1, 1]
    np.testing.assert_allclose(r, (alive if square > 1e-8 else dead)(square), rtol=1e-6)


def test_rates_in_float16() -> None:
    """A product that float16 cannot hold."""
    params = {"c": jnp.array([1e-4, -1e-4, 300, -300], jnp.float16)}
    dynamics = ll.birth_death.dynamics(1.0, axes={"c": 0}, charges=lambda p: p["c"])
    gradients = {"c": jnp.array([1e-4, 1e-4, 300, 300], jnp.float16)}
    events = dynamics.update(KEY, params, dynamics.init(params), gradients)[1]
    product = np.float32(params["c"]) * np.float32(gradients["c"])
    np.testing.assert_array_equal(events.rates, product)


def test_the_mean_of_large_rates() -> None:
    params = {"c": jnp.ones(4)}
    dynamics = ll.birth_death.dynamics(1.0, axes={"c": 0}, charges=lambda p: p["c"], center="mean")
    rates = np.full(4, 2e38, np.float32)
    events = dynamics.update(KEY, params, dynamics.init(params), rates=rates)[1]
    np.testing.assert_array_equal(events.rates, 0)


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e18])
def test_penalty_over_the_range(size: float) -> None:
    judge = symbolic.critic(2, hidden=())
    params = {"critic": ({"w": jnp.array([[3.0], [4.0]]) * size},), "embedding": ()}
    penalty = partial(symbolic.gradient_penalty, judge)
    value, slope = jax.value_and_grad(penalty)(params, jnp.full(5, 0.5), jnp.ones((5, 2)), jnp.zeros((5, 2)))
    np.testing.assert_allclose(value, (5 * size - 1) ** 2, rtol=1e-5)
    expected = 2 * (5 * size - 1) * np.array([0.6, 0.8])
    np.testing.assert_allclose(slope["critic"][0]["w"][:, 0], expected, rtol=1e-5)


# --- plasticity


@pytest.mark.parametrize("step_size", [0.5, 5.0])
def test_multiplicative_factors_of_both_signs(step_size: float) -> None:
    """The cheap derivative is that through the pass, also where factors `1 + step_size beta` are negative."""
    scheme = plasticity.Scheme(step_size, update="multiplicative")
    network = plasticity.k_cap_mlp((3, 6, 6, 2), 3, scheme=scheme)
    state = network.init(KEY)
    tables = jax.tree.map(
        lambda t: jax.random.uniform(KEY_2, t.shape, minval=-0.7, maxval=0.7), network.init_tables(KEY)
    )

    def through(tables: Any) -> Any:
        after = plasticity.plastic_pass(network, tables, network.reset(state), X, Y)[0]
        return sum(jnp.sum(jnp.sin(layer["w"])) for layer in after[1:])

    def cheap(tables: Any) -> Any:
        after = plasticity.learn_episode(network, tables, state, X, Y)
        return sum(jnp.sum(jnp.sin(layer["w"])) for layer in after[1:])

    if step_size > 1:
        assert any(bool(jnp.any(1 + step_size * t < 0)) for t in jax.tree.leaves(tables))
    # A handful of products of six factors.
    for a, b in zip(*(jax.tree.leaves(jax.grad(f)(tables)) for f in (through, cheap)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.max(jnp.abs(a))))


def test_many_codes_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same changes as by one select a code."""
    network = plasticity.k_cap_recurrent((3, 5, 2), 2, rounds=1)
    state, tables = network.init(KEY), network.init_tables(KEY, hidden_init=jax.nn.initializers.normal(1.0))
    selected = plasticity.plastic_pass(network, tables, state, X, Y)[0]
    monkeypatch.setattr(passes_module, "MAX_SELECTS", 1)
    gathered = plasticity.plastic_pass(network, tables, state, X, Y)[0]
    jax.tree.map(np.testing.assert_array_equal, selected, gathered)


# --- symbolic


@pytest.mark.parametrize(
    "text",
    [
        "1e12 + X[:,0];2",  # blind beside the value
        "1e30*U0 + sin(X[:,0]);cos(X[:,0]) + 0.001",
        "1e-20*X[:,0];3e-20",  # small
        "abs(X[:,0] - 5);-1",  # right near 0 alone
        "X[:,0]**3/(1 + exp(0 - 9*(X[:,0] - 6)));0",
    ],
)
def test_wrong_derivatives_are_refused(text: str) -> None:
    with pytest.raises(ExpressionError, match="expected the derivative by column 0"):
        parse_library(text)


@pytest.mark.parametrize(
    "text",
    [
        "1e12 + X[:,0];1",
        "1e-20*X[:,0];1e-20",
        "1e6*(sin(X[:,0])**2 + cos(X[:,0])**2);0",  # what rounding leaves is no error
        "(X[:,0] - 1)**2;2*X[:,0] - 2",
        "exp(exp(X[:,0])) + X[:,0];exp(exp(X[:,0]) + X[:,0]) + 1",
        "tanh(X[:,0]);1 - tanh(X[:,0])**2",
        "sin(1000*X[:,0]);1000*cos(1000*X[:,0])",
    ],
)
def test_right_derivatives_pass(text: str) -> None:
    assert parse_library(text).derivatives[0] is not None


def test_coefficients_that_only_a_derivative_names() -> None:
    library = parse_library("X[:,0];1 + 0*N4*X[:,2];0;0")
    assert (library.num_coefficients, library.num_columns) == (5, 3)
    draws = symbolic.draw_functions(KEY, library, 2)
    coefficients = jax.tree.map(lambda a: a[0], draws.coefficients)
    assert library.derivatives[0] is not None
    np.testing.assert_array_equal(library.derivatives[0][0].evaluate(coefficients, jnp.ones((4, 3))), 1)


def test_no_key_is_used_twice_in_training() -> None:
    judge, optimizer = symbolic.critic(3), optax.adam(1e-3)
    step = symbolic.critic_step(judge, optimizer, penalty=0.1)
    draw = partial(jax.random.normal, shape=(4, 3))
    train = symbolic.train_critic(step, draw, draw, num_epochs=1, iterations=2)
    with jax.debug_key_reuse(True):
        state = symbolic.init_critic(jax.random.key(3), judge, optimizer)
        jax.jit(train)(fresh(), state)


def test_optimizers_that_look_at_the_loss() -> None:
    judge = symbolic.critic(3)
    optimizer = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau())
    state = symbolic.init_critic(KEY, judge, optimizer)
    step = symbolic.critic_step(judge, optimizer)
    assert np.isfinite(step(KEY_2, state, X, -X)[1].loss_real)
