"""One property a kind, over k-cap networks, birth-death, decorrelation and the symbolic critic."""

import inspect
import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lax_learning as ll
from lax_learning import data, plasticity, symbolic
from tests.compare import noise_by_shape, normal, slow_but

KEY, X = jax.random.key(0), normal(1, 6, 3)
Y = jnp.array([0, 1, 1, 0, 1, 0])


def fresh() -> Any:
    """A key that has not been used: with key checks on, JAX remembers."""
    return jax.random.key(2)


def like(init: Callable[[Any], Any]) -> Any:
    """Params or a state of these shapes, from NumPy: drawing them takes longer than the tests."""
    return noise_by_shape(KEY, jax.eval_shape(init, KEY))


def passes(network: plasticity.KCapNetwork, dtype: Any) -> tuple[Any, Any]:
    """Samples and tables in, state and logits out."""
    state, tables = like(network.init), like(network.init_tables)

    def call(xs: Any, tables: Any) -> Any:
        after, prediction, diagnostics = plasticity.plastic_pass(network, tables, state, xs, Y)
        return [layer["w"] for layer in after[1:]], diagnostics.response.logits, prediction

    return call, (X.astype(dtype), tables)


def resampled(dtype: Any, **options: Any) -> tuple[Any, Any]:
    params = {"w": jnp.ones((5, 3), dtype), "c": jnp.asarray(np.linspace(-1, 1, 5), dtype)}
    dynamics = ll.birth_death.dynamics(1.0, axes={"w": 0, "c": 0}, charges=lambda p: p["c"], **options)
    state = dynamics.init(params)

    def call(gradients: Any, params: Any) -> Any:
        (params, _), events = dynamics.update(fresh(), params, state, gradients)
        return events.rates, params

    return call, (jax.tree.map(jnp.ones_like, params), params)


def ruled(dtype: Any) -> tuple[Any, Any]:
    network, noisy = ll.mlp((3, 4, 2), dtype=dtype), partial(ll.node_perturbation, sigma=0.1)
    dynamics = ll.decorrelation.dynamics(0.1, variant="decorbp", bias=True, subsample=0.5)
    rule = ll.decorrelation.rule(lambda model: noisy(model, ll.squared_error), network, dynamics)
    params, y = like(network.init), jnp.ones((6, 2), dtype)

    def call(x: Any, params: Any) -> Any:
        return rule.value_and_grad(fresh(), params, rule.init(fresh(), params, x), x, y)

    return call, (X.astype(dtype), params)


def criticised(dtype: Any) -> tuple[Any, Any]:
    judge = symbolic.critic(3, hidden=(4,), dtype=dtype)
    optimizer = optax.chain(optax.add_decayed_weights(1e-7), optax.adam(1e-3))
    step = symbolic.critic_step(judge, optimizer, penalty=0.1)

    def call(real: Any, params: Any) -> Any:
        state = symbolic.CriticState(params, optimizer.init(params))
        after, metrics = step(fresh(), state, real, real[::-1] + 1)
        return after.params, metrics.loss_real, metrics.penalty

    return call, (X.astype(dtype), like(judge.init))


def generated(dtype: Any) -> tuple[Any, Any]:
    makers: Any = (symbolic.mlp_generator, symbolic.dsn_generator, symbolic.gaussian_process_generator)
    generators = [make(3, 2, dtype=dtype) for make in makers]
    params = [like(generator.init) for generator in generators]

    def call(x: Any, params: Any) -> Any:
        return [generator.apply(p, x) for generator, p in zip(generators, params, strict=True)]

    return call, (X.astype(dtype), params)


TWO_ROWS = plasticity.Scheme(update="multiplicative", rows="two")
UPDATES: dict[str, Any] = {
    "k_cap_mlp": lambda dtype: passes(
        plasticity.k_cap_mlp((3, 6, 6, 2), 3, scheme=TWO_ROWS, dtype=dtype), dtype
    ),
    "k_cap_recurrent": lambda dtype: passes(plasticity.k_cap_recurrent((3, 6, 2), 3, dtype=dtype), dtype),
    "clone": partial(resampled, charge="split"),
    "prior": partial(resampled, scheme="prior"),
    "decorrelated_rule": ruled,
    "critic_step": criticised,
    "generators": generated,
}
FAST = ("k_cap_recurrent", "prior", "decorrelated_rule", "critic_step")


def floats(tree: Any) -> list[Any]:
    return [a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.floating)]


@pytest.mark.parametrize("name", slow_but(FAST, UPDATES))
def test_strict_promotion_keys_and_nan(name: str) -> None:
    """With key checks on, too; NaN that goes in comes out, and is no label."""
    call, (x, params) = UPDATES[name](jnp.float32)
    spoil = partial(jax.tree.map, lambda a: jnp.full_like(a, jnp.nan))
    with jax.numpy_dtype_promotion("strict"), jax.debug_key_reuse(True):
        run = jax.jit(call)
        assert all(np.isfinite(a).all() for a in floats(run(x, params)))
        for spoiled in ((spoil(x), params), (x, spoil(params))):
            assert any(np.isnan(a).any() for a in floats(run(*spoiled)[:2]))
        if name.startswith("k_cap"):
            prediction = run(x.at[2].set(jnp.nan), params)[-1]
            np.testing.assert_array_equal(prediction == -1, np.arange(6) == 2)


@pytest.mark.parametrize("name", slow_but(["prior"], UPDATES))
def test_checks_for_nan_and_reverse_mode(name: str) -> None:
    call, args = UPDATES[name](jnp.float32)

    def total(*args: Any) -> Any:
        return sum(jnp.sum(jnp.where(jnp.isfinite(a), a, 0)) for a in floats(call(*args)))

    dynamics = ll.decorrelation.dynamics(0.1, every=2)
    with jax.debug_nans(True):
        jax.jit(jax.grad(total, (0, 1)))(*args)
        # The loss of a call without an update is NaN otherwise.
        assert dynamics.update(fresh(), ll.decorrelation.State(jnp.eye(3), step=1), X)[1].loss == jnp.inf


def test_half_precision() -> None:
    """Params keep it, what is measured is in it or in float32; strict promotion, of shapes alone."""
    for name, make in UPDATES.items():

        def run(make: Any = make) -> Any:
            call, (x, params) = make(jnp.bfloat16)
            with jax.numpy_dtype_promotion("strict"):
                return call(x, params), params

        found, kept = jax.eval_shape(run)
        for part in found:
            if jax.tree.structure(part) == jax.tree.structure(kept) and len(jax.tree.leaves(part)) > 1:
                assert part == kept, name
        others = set() if name == "generators" else {"float32", "int32"}
        assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} <= {"bfloat16", *others}, name


def test_optimizers_that_look_at_the_loss() -> None:
    judge, optimizer = symbolic.critic(3), optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau())
    state = jax.eval_shape(lambda: symbolic.init_critic(KEY, judge, optimizer))
    after, _ = jax.eval_shape(symbolic.critic_step(judge, optimizer), KEY, state, X, -X)
    assert after == state


@pytest.mark.usefixtures("as_a_user_sees_it")
def test_containers_stay() -> None:
    k_cap = plasticity.k_cap_mlp((3, 6, 6, 2), 3)
    tables, layers = like(k_cap.init_tables), like(k_cap.init)
    synapses: Any = [OrderedDict(sorted(layer.items(), reverse=True)) for layer in layers]
    for after in jax.eval_shape(
        lambda: (
            plasticity.plastic_pass(k_cap, tables, synapses, X, Y)[0],
            plasticity.table_plasticity(k_cap).update(tables, synapses, X[0], 1)[0],
            plasticity.learn_episode(k_cap, tables, synapses, X, Y),
            plasticity.with_params(synapses, plasticity.MetaParams(tables, synapses[0]["w"])),
            k_cap.reset(synapses),
        )
    ):
        assert jax.tree.structure(after) == jax.tree.structure(synapses)


LOSSES = jax.jit(lambda z: (ll.decorrelation.loss(z), ll.decorrelation.loss(z, kappa=0.0)))


def test_decorrelation_loss_over_the_range() -> None:
    """As in double precision, where float32 has the number; never NaN or below 0."""
    for count, exponent in product((2, 12), range(-30, 31, 3)):
        z = (np.random.default_rng(0).normal(size=(count, 4)) * 10.0**exponent).astype(np.float32)
        c = z.T.astype(float) @ z.astype(float) / count
        off, diagonal = np.sum((c - np.diag(np.diag(c))) ** 2), np.sum((np.diag(c) - 1) ** 2)
        found = np.array(LOSSES(z))
        assert np.all(found >= 0)
        with np.errstate(over="ignore"):
            expected = np.array([(0.5 * off + 0.5 * diagonal) / 16, off / 16], np.float32)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_decorrelation_loss_does_not_cancel() -> None:
    """Off-diagonal moments of 1 beside variances of 1e6: a subtraction of squares would lose them."""
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 4)))[0] * math.sqrt(12)
    z = (1e3 * q @ np.linalg.cholesky(np.eye(4) * (1 - 1e-6) + 1e-6).T).astype(np.float32)
    c = z.T.astype(float) @ z.astype(float) / 12
    expected = np.sum((c - np.diag(np.diag(c))) ** 2) / 16
    # Every entry off the diagonal is a mean of 12 products of 1e6, each rounded.
    error = 2 * 12 / 16 * (0.06 + 2**-24 * 1e6) + 0.05
    assert abs(float(LOSSES(z)[1]) - expected) < error < expected


DEFAULTS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    *((draw, {"num_features": 16, "sizes": (7_500, 0, 2_500)}) for draw in (data.half_space, data.relu_net)),
    (data.planted, {"num_features": 50, "num_units": 10}),
    (plasticity.k_cap_mlp, {"edge_probability": 0.5, "fired": "value"}),
    (plasticity.k_cap_recurrent, {"edge_probability": 0.5, "fired": "value", "rounds": 2}),
    (plasticity.Scheme, {"step_size": 0.01, "update": "additive", "samples": "every", "rows": "all"}),
    (plasticity.meta_learn, {"batch_size": 100}),
    (ll.birth_death.dynamics, {"scheme": "clone", "center": "none", "probability": "linear"}),
    (ll.birth_death.dynamics, {"charge": "copy", "slots": "distinct"}),
    (ll.birth_death.follow, {"copies": "carry"}),
    (ll.decorrelation.dynamics, {"kappa": 0.5, "variant": "paper", "every": 1, "subsample": 1.0}),
    (symbolic.mlp_generator, {"hidden": (32, 32)}),
    (symbolic.dsn_generator, {"hidden": (32, 32), "norm": "none", "prune": 0.0, "bias": False}),
    (symbolic.gaussian_process_generator, {"num_features": 512, "scale": 1.0, "length_scale": 1.0}),
    (symbolic.critic, {"hidden": (64, 64), "embedding": (64, 64)}),
    (symbolic.critic_step, {"objective": "bce", "penalty": 0.0}),
    (symbolic.train_critic, {"iterations": 5}),
]


def test_defaults() -> None:
    for function, expected in DEFAULTS:
        options = inspect.signature(function).parameters
        assert {name: options[name].default for name in expected} == expected, function
