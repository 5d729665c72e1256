"""Curves for a critic, studies of many configurations, and latents regularised by a critic."""

# pyright: reportArgumentType=false

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lax_learning.symbolic.curves import curves_at
from lax_learning.symbolic.expressions import draw_functions, function_values, parse_library
from lax_learning.symbolic.generators import latent_jacobian, mlp_generator
from lax_learning.symbolic.regularisation import COSTS, largest_correlations, regularised_loss
from lax_learning.symbolic.study import (
    Group,
    group_by_shape,
    random_configurations,
    run_group,
    run_study,
    study_dataset,
)
from tests.compare import assert_close, assert_same
from tests.refusal import parametrize_cases, refuses

KEY = jax.random.key(0)
X = jnp.linspace(-1, 1, 7)[:, None]
LIBRARY = parse_library("N0*0.05*(X[:,0] + 0.5*N1)**2 + 0.15*N2\n2*N0*sin(3*U0*X[:,0])")
GENERATOR = mlp_generator(1, 3, hidden=(4,))

# --- curves


def test_curves_without_extensions():
    curves = curves_at(X, LIBRARY, GENERATOR)
    assert curves.curve_shape == (7,)
    real, fake = jax.jit(curves.real)(KEY), jax.jit(curves.fake)(KEY)
    assert_close(real, function_values(LIBRARY, draw_functions(KEY, LIBRARY, 3), X), ulps=32)
    assert_close(fake, GENERATOR.apply(GENERATOR.init(KEY), X).T, ulps=32)


@pytest.mark.parametrize("method", ["stack", "embed"])
def test_extensions_come_in_the_given_order(method):
    curves = curves_at(X, LIBRARY, GENERATOR, extensions=("gradient", "input"), method=method)
    assert curves.curve_shape == ((7, 3) if method == "embed" else (21,))
    plain = curves_at(X, LIBRARY, GENERATOR)
    step = 1e-2
    for of in ("real", "fake"):
        extended, values = getattr(curves, of)(KEY), getattr(plain, of)(KEY)
        shifted = [
            getattr(curves_at(X + d, LIBRARY, GENERATOR), of)(KEY) for d in (-step, step)
        ]  # the same functions beside the points
        channels = jnp.moveaxis(extended, -1, 0) if method == "embed" else jnp.split(extended, 3, axis=1)
        np.testing.assert_array_equal(channels[0], values)
        # Third differences are below 27 * 2 * 3^3 / 6 * step^2; a ReLU's kink may lie between two points.
        slope = (shifted[1] - shifted[0]) / (2 * step)
        close = np.isclose(channels[1], slope, atol=0.03)
        assert close.all() if of == "real" else close.mean() > 0.8
        np.testing.assert_array_equal(channels[2], np.tile(X[:, 0], (3, 1)))
    params = GENERATOR.init(KEY)
    gradients = latent_jacobian(GENERATOR.apply, params, X)[:, :, 0]
    of_latents = curves.latents(GENERATOR.apply, params)
    assert_same(of_latents[..., 1] if method == "embed" else of_latents[:, 7:14], gradients)


# --- studies

SPACE = {"width": (2, 3), "rate": (0.1, 0.2, 0.3), "steps": (1, 2)}


def make_run(width, steps):
    """A descent whose end has a closed form."""

    def run(key, traced):
        start = jax.random.normal(key, (width,))
        end = jax.lax.fori_loop(0, steps, lambda _, w: w - traced["rate"] * w, start)
        return {"end": jnp.sum(end), "ratio": end[:2] / start[:2]}

    return run


def test_configurations_are_drawn_uniformly():
    found = random_configurations(KEY, SPACE, 3_000)
    for name, values in SPACE.items():
        counts = np.array([sum(c[name] == value for c in found) for value in values])
        share = 1 / len(values)
        assert (abs(counts / 3_000 - share) < 5 * np.sqrt(share * (1 - share) / 3_000)).all()
    pairs = np.mean([c["width"] == 2 and c["steps"] == 1 for c in found])
    assert abs(pairs - 1 / 4) < 5 * np.sqrt(3 / 16 / 3_000)  # fields do not depend on each other
    assert (
        found
        == random_configurations(KEY, SPACE, 3_000)
        != random_configurations(jax.random.key(1), SPACE, 3_000)
    )


def test_groups_hold_every_configuration_once():
    configurations = random_configurations(KEY, SPACE, 40)
    groups = group_by_shape(configurations, ["width", "steps"])
    assert sorted(i for group in groups for i in group.members) == list(range(40))
    assert len({tuple(group.static.values()) for group in groups}) == len(groups) == 4
    for group in groups:
        for i, rate in zip(group.members, group.traced["rate"], strict=True):
            assert configurations[i] == {**group.static, "rate": rate}


def test_a_study_is_its_runs():
    configurations, keys = random_configurations(KEY, SPACE, 9), jax.random.split(KEY, 3)
    found = list(run_study(make_run, configurations, keys, static=["width", "steps"]))
    dataset = study_dataset(configurations, found)
    assert dataset.end.shape == (9, 3) and dataset.ratio.shape == (9, 3, 2)
    for i, configuration in enumerate(configurations):
        one = dataset.sel(configuration=i)
        kept = (1 - configuration["rate"]) ** configuration["steps"]
        np.testing.assert_allclose(one.ratio, kept, rtol=1e-5)
        sums = [float(jnp.sum(jax.random.normal(key, (configuration["width"],)))) for key in keys]
        np.testing.assert_allclose(one.end, kept * np.array(sums), rtol=1e-5, atol=1e-6)
        assert float(one.rate) == configuration["rate"] and int(one.width) == configuration["width"]


def test_a_group_is_one_program():
    traces = []

    def counted(**static):
        run = make_run(**static)
        return lambda key, traced: (traces.append(static), run(key, traced))[1]

    (group,) = group_by_shape(
        [{"width": 2, "steps": 1, "rate": r} for r in (0.1, 0.2, 0.3)], ["width", "steps"]
    )
    run_group(counted, group, jax.random.split(KEY, 2))
    assert len(traces) == 1


def test_axes_of_other_lengths_are_filled():
    def make(n):
        return lambda key, traced: {"curve": traced["a"] * jnp.arange(n)}

    configurations = [{"n": 3, "a": 2.0}, {"n": 2, "a": 1.0}]
    found = list(run_study(make, configurations, jax.random.split(KEY, 1), static=["n"]))
    curve = study_dataset(configurations, found).curve.sel(seed=0).values
    np.testing.assert_array_equal(curve, [[0, 2, 4], [0, 1, np.nan]])


# --- regularisation


@pytest.mark.parametrize("cost", COSTS)
def test_the_critic_is_a_constant_in_the_loss(cost):
    target = 0.3 * X

    def judge(params):
        return 2 * params["w"][:, 0] - 1

    def predict(params, x):
        return x @ params["w"].T @ jnp.ones((2, 1))

    params = {"w": jnp.array([[0.5], [0.4]])}
    loss = regularised_loss(predict, judge, X, target, weight=0.7, cost=cost)
    (value, parts), grads = jax.value_and_grad(loss, has_aux=True)(params)
    x, w, logits = np.asarray(X), np.array([0.5, 0.4]), np.array([0.0, -0.2])
    error = x * w.sum() - 0.3 * x
    sigmoid = 1 / (1 + np.exp(-logits))
    costs, slopes = {
        "linear": (-logits, -np.ones(2)),
        "sigmoid": (-sigmoid, -sigmoid * (1 - sigmoid)),
        "logsigmoid": (-np.log(sigmoid), sigmoid - 1),
    }[cost]
    np.testing.assert_allclose([parts.fit, parts.critic], [np.mean(error**2), costs.mean()], rtol=1e-5)
    np.testing.assert_allclose(value, np.mean(error**2) + 0.7 * costs.mean(), rtol=1e-5)
    expected = np.mean(2 * error * x) + 0.7 * slopes / 2 * 2
    np.testing.assert_allclose(grads["w"][:, 0], expected, rtol=1e-5)


def test_a_critic_pulls_latents_towards_functions():
    """The critic likes lines through 0; half of the latents' sum is to be a line, each latent is free."""
    x = np.asarray(X)

    def judge(params):
        return -10 * jnp.mean(jnp.square(params["latents"] - params["latents"][-1:] * X), axis=0)

    def predict(params, x):
        return jnp.sum(params["latents"], axis=1, keepdims=True)

    start = {"latents": jax.random.normal(KEY, (7, 2))}

    def fitted(weight):
        loss = regularised_loss(predict, judge, X, 2 * X, weight=weight, cost="linear")
        optimizer = optax.adam(0.05)

        def step(carry: Any, _: Any) -> Any:
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss, has_aux=True)(params)[0], state)
            return (optax.apply_updates(params, updates), state), None

        start_of_all: Any = (start, optimizer.init(start))
        (params, _), _ = jax.lax.scan(step, start_of_all, length=400)
        return largest_correlations(params["latents"], jnp.asarray(x)).min(), loss(params)[1].fit

    correlations, fits = jax.jit(jax.vmap(fitted))(jnp.array([0.0, 1.0]))
    assert fits.max() < 1e-3 and correlations[0] < 0.9 and correlations[1] > 0.999


def test_correlations_are_numpys():
    rng = np.random.default_rng(0)
    latents, components = rng.normal(size=(30, 4)), rng.normal(size=(30, 3)) + 5
    latents[:, 3] = 7.0
    expected = abs(np.corrcoef(latents[:, :3].T, components.T)[:3, 3:]).max(axis=1)
    np.testing.assert_allclose(largest_correlations(latents, components), [*expected, 0], rtol=1e-4)
    gradient = jax.grad(lambda a: largest_correlations(a, components).sum())(jnp.asarray(latents))
    assert np.isfinite(gradient).all()


# --- what is refused


def predict(params, x):
    return x[:, 0]


def judge(params):
    return params


GROUP = Group({"n": 1}, {}, (0,))


@parametrize_cases(
    {
        "method": (lambda: curves_at(X, LIBRARY, GENERATOR, method="glue"), ValueError, "^method: expected"),
        "extension": (
            lambda: curves_at(X, LIBRARY, GENERATOR, extensions=("input", "slope")),
            ValueError,
            r"^extensions\[1\]: expected one of",
        ),
        "twice": (
            lambda: curves_at(X, LIBRARY, GENERATOR, extensions=("input", "input")),
            ValueError,
            "^extensions: expected each at most once",
        ),
        "no points": (lambda: curves_at(X[:0], LIBRARY, GENERATOR), ValueError, "^x: expected a non-empty"),
        "column": (
            lambda: curves_at(X, parse_library("X[:,1]"), GENERATOR),
            ValueError,
            "^x: expected .* 2 columns, got",
        ),
        "integers": (lambda: curves_at(X.astype(int), LIBRARY, GENERATOR), TypeError, "^x: expected a float"),
        "number": (lambda: random_configurations(KEY, SPACE, 0), ValueError, "^number: expected at least 1"),
        "no values": (
            lambda: random_configurations(KEY, {"a": ()}, 1),
            ValueError,
            r"^space\['a'\]: expected at least one value, got none",
        ),
        "none": (lambda: group_by_shape([], []), ValueError, "^configurations: expected at least one, got"),
        "static": (lambda: group_by_shape([{"a": 1}], ["b"]), ValueError, "^static: expected fields among"),
        "fields": (
            lambda: group_by_shape([{"a": 1}, {"b": 1}], []),
            ValueError,
            r"^configurations\[1\]: expected fields \['a'\], got \['b'\]",
        ),
        "text": (
            lambda: group_by_shape([{"a": "x"}], []),
            TypeError,
            r"^configurations\[0\]\['a'\]: expected a number, got 'x'",
        ),
        "keys": (
            lambda: run_group(lambda: len, group_by_shape([{"a": 1}], [])[0], KEY),
            ValueError,
            r"^keys: expected shape \[seeds\], got \[\]",
        ),
        "make_run": (
            lambda: run_group(lambda width: None, GROUP, KEY[None]),
            TypeError,
            r"^make_run: expected a function of the static fields \['n'\] .*got <lambda>\(width\)",
        ),
        "run": (
            lambda: run_group(lambda n: lambda key: 3, GROUP, KEY[None]),
            TypeError,
            r"^make_run: expected .* returns a run\(key, traced\), got <lambda>\(key\)",
        ),
        "name of a field": (
            lambda: group_by_shape([{"a": 1}], [["a"]]),
            TypeError,
            r"^static\[0\]: expected the name of a field, got list",
        ),
        "fields without names": (
            lambda: group_by_shape([{1: 2}], []),
            TypeError,
            r"^configurations\[0\]: expected fields that are named by text, got 1",
        ),
        "nothing found": (
            lambda: study_dataset([{"a": 1}], None),
            TypeError,
            r"^found: expected a sequence of \(group, results\), got None",
        ),
        "metric with the name of a field": (
            lambda: study_dataset([{"n": 1}], [(GROUP, {"n": jnp.ones((1, 2))})]),
            ValueError,
            r"^found\[0\]: expected metrics not named as one of .*, got 'n'",
        ),
        "seeds of two metrics": (
            lambda: study_dataset([{"n": 1}], [(GROUP, {"a": jnp.ones((1, 2)), "b": jnp.ones((1, 3))})]),
            ValueError,
            r"^found\[0\]\['b'\]: expected shape \[1, 2, \.\.\.\], got \[1, 3\]",
        ),
        "predict": (
            lambda: regularised_loss(lambda x: x, judge, X, X, weight=1),  # pyright: ignore
            TypeError,
            r"^predict: expected a function \(params, x\) -> predictions, got <lambda>\(x\)",
        ),
        "half": (lambda: study_dataset([{"a": 1}], []), ValueError, "^found: expected each of 1 .* got"),
        "cost": (
            lambda: regularised_loss(predict, judge, X, X, weight=1, cost="hinge"),
            ValueError,
            "^cost: expected one of",
        ),
        "weight": (
            lambda: regularised_loss(predict, judge, X, X, weight=-1),
            ValueError,
            "^weight: expected",
        ),
        "prediction": (
            lambda: regularised_loss(predict, judge, X, X, weight=0.1)(X),
            ValueError,
            r"^predict\(params, x\): expected shape \[7, 1\], got \[7\]",
        ),
        "latents": (lambda: largest_correlations(X[:, 0], X), ValueError, "^latents: expected shape"),
        "components": (lambda: largest_correlations(X, X[1:]), ValueError, "^components: expected shape"),
    }
)
@pytest.mark.usefixtures("as_a_user_sees_it")
def test_bad_input(call, error, pattern):
    refuses(call, error, pattern)
