"""The benchmark of gradient quality: against closed forms, its registry, its sweeps and its command."""

import itertools
import json
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning as ll
from benchmarks import gradient_quality
from benchmarks.quality import (
    METRICS,
    RULES,
    SWEEPS,
    Bench,
    Config,
    Setting,
    make_problem,
    make_rule,
    measure_draws,
    measure_examples,
    predict,
    report,
)
from benchmarks.quality.rules import DENSE_ALONE
from benchmarks.quality.settings import NETWORKS
from benchmarks.quality.theory import Exact, exact_signals
from tests.command_line import call_main
from tests.compare import slow_but

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(90)
SMALL = Setting(width=4, batch_size=4)


def images(count=12, side=4):
    keys = jax.random.split(KEY, 2)
    labels = jax.nn.one_hot(jax.random.randint(keys[1], (count,), 0, 3), 3)
    return np.asarray(jax.random.uniform(keys[0], (count, side, side))), np.asarray(labels)


@pytest.fixture(scope="module")
def bench():
    return Bench(*images(), seeds=2, draws=4, examples=3)


def linear_loss(output, y):
    return jnp.sum(output * y, axis=1)


def measured(make_rule, model, batch_size, num_draws, loss=linear_loss):
    """A rule's metrics on one batch, and the exact gradient and signals."""
    rule = make_rule(model, loss)

    def everything(key):
        x_key, y_key, key = jax.random.split(key, 3)
        params = model.init(key)
        x = jax.random.normal(x_key, (batch_size, params[0]["w"].shape[0]))
        y = jax.random.normal(y_key, (batch_size, *params[-1]["b"].shape))
        exact = exact_signals(model, loss, key, params, x, y)
        state = rule.init(key, params, x)
        return measure_draws(rule, params, state, x, y, key, num_draws, reference=exact.grads), exact

    return jax.jit(everything)(KEY)


def half(model, loss):
    """Backprop with half of its gradients."""
    rule = ll.backprop(model, loss)

    def value_and_grad(*args):
        value, grads, state = rule.value_and_grad(*args)
        return value, jax.tree.map(lambda g: g / 2, grads), state

    return rule._replace(value_and_grad=value_and_grad)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "bias"), [(half, 0.25), (ll.backprop, 0)])
def test_quality_of_what_draws_nothing(make, bias):
    found, _ = measured(make, ll.mlp((5, 4, 3), activation=jnp.tanh), 4, 6, ll.squared_error)
    np.testing.assert_allclose(found["cosine"], np.ones(3), atol=1e-6)
    np.testing.assert_allclose(found["angle_degrees"], np.zeros(3), atol=0.1)
    np.testing.assert_allclose(found["relative_bias"], np.full(3, bias), rtol=1e-4, atol=1e-10)
    np.testing.assert_allclose(found["relative_variance"], np.zeros(3), atol=1e-10)
    assert np.isnan(found["snr_draws"]).all()  # it draws nothing


@pytest.mark.slow
def test_signal_to_noise_is_the_library_s():
    """Over draws on the batch and over its examples, of every layer and in total, in both forms."""
    model = ll.mlp((5, 4, 3))
    rule = make_rule("weight_perturbation_signs", model, ll.squared_error, 0.1)
    params = model.init(KEY)
    x, y = jax.random.normal(KEY, (6, 5)), jnp.ones((6, 3))

    def both(key):
        found = measure_draws(rule, params, (), x, y, key, 4, reference=params)
        found |= measure_examples(model, rule, params, (), x, y, key)
        sources = {
            "draws": ll.metrics.draw_moments(rule, key, params, (), x, y, params, 4),
            "examples": ll.metrics.example_moments(model, rule, key, params, (), x, y),
        }
        expected = {}
        for source, moments in sources.items():
            for suffix, variant in {"": "debiased", "_tutorial": "tutorial"}.items():
                parts = *moments.parts(depth=1).values(), moments
                ratios = [ll.metrics.snr(part, variant=variant) for part in parts]
                expected[f"snr_{source}{suffix}"] = jnp.stack([ratio.total.value for ratio in ratios])
        return found, expected

    found, expected = jax.jit(both)(KEY)
    assert set(METRICS) <= set(found)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("name", "batch_size"),
    slow_but(
        [("node_perturbation_layerwise", 1)],
        [
            ("node_perturbation_layerwise", 1),
            ("weight_perturbation_signs", 6),
            ("forward_gradient_activities", 6),
            ("forward_gradient_activities", 1),
        ],
    ),
)
def test_theory_of_two_layers(name, batch_size):
    """Against many draws of small noise, layers apart; the squared cosine is a ratio of means."""
    make, model = partial(make_rule, name, sigma=1e-2), ll.mlp((10, 20, 10), activation=jnp.tanh)
    found, exact = measured(make, model, batch_size, 1000, ll.squared_error)
    theory = predict(name, exact, 1)
    for metric, tolerance in {"relative_variance": 0.0, "snr_draws": 0.0, "cosine_squared": 0.05}.items():
        deviation = np.abs(found[metric] - theory[metric]) - tolerance * theory[metric]
        assert (deviation < 5 * found[f"{metric}_error"]).all(), (metric, found[metric], theory[metric])


def test_variance_of_random_signs_is_less_by_two():
    exact = Exact(({"w": jnp.ones((5, 3)), "b": jnp.ones(3)},), [], [])
    for name, expected in {"weight_perturbation": 18 + 1, "weight_perturbation_signs": 18 - 1}.items():
        np.testing.assert_allclose(predict(name, exact, 1)["relative_variance"], expected)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_every_rule_takes_every_network(network):
    problem = make_problem(replace(SMALL, network=network), *images())
    params = jax.eval_shape(problem.model.init, KEY)
    for name in RULES:
        if network == "dense" or name not in DENSE_ALONE:
            rule = make_rule(name, problem.model, problem.loss, 0.1)
            state = jax.eval_shape(rule.init, KEY, params, problem.x)
            _, grads, _ = jax.eval_shape(rule.value_and_grad, KEY, params, state, problem.x, problem.y)
            assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, params), name


def test_operations_are_those_counted_by_hand(bench):
    """Products of a batch of 4 with weights of 16 x 4 and 4 x 3, a product and a sum each."""
    first, second = (2 * 4 * size for size in (16 * 4, 4 * 3))
    for rule, expected in {
        "backprop": 2 * first + 3 * second,  # forward, weights' gradients, the output's signal back
        "feedback_alignment": 2 * first + 3 * second,
        "weight_perturbation": 2 * first + 2 * second,  # without and with noise
        "forward_gradient": 2 * first + 3 * second,  # forward, tangents of weights and of the hidden activity
        # The first product once, the second without and with noise, weights' gradients.
        "node_perturbation": 2 * first + 3 * second,
    }.items():
        assert bench.flops(rule, SMALL) == expected, rule


@pytest.mark.parametrize("name", slow_but([], SWEEPS))
def test_sweeps_have_named_axes_and_finite_numbers(name, bench):
    value = {"network": "convolutional", "sigma": 0.1}.get(name, 2)
    settings = [SMALL, replace(SMALL, **{name: value})]
    rules = ["weight_perturbation_signs"]  # it compiles quickly
    sweep = bench.sweep(name, rules, settings)
    assert set(sweep.cosine.dims) == {"rule", name, "seed", "layer"}
    assert list(sweep[name].values) == [getattr(setting, name) for setting in settings]
    assert list(sweep.rule.values) == rules and sweep.sizes["seed"] == 2
    assert sweep.sizes["layer"] == max(setting.depth for setting in settings) + 2
    for metric in METRICS:
        assert np.isfinite(sweep[metric].sel(layer=["1", "2", "total"])).all(), metric
    row = report.rows(sweep)[0]
    errors = sweep.cosine_error.isel({name: 0, "rule": 0, "layer": 0}).values
    expected = np.sqrt(np.sum(errors**2)) / 2  # of the mean over two seeds
    np.testing.assert_allclose(row["metrics"]["cosine"]["standard_error"], expected, rtol=1e-3)
    with pytest.raises(AssertionError):  # the axis is varied
        np.testing.assert_array_equal(
            *(sweep.angle_degrees.isel({name: i}).sel(layer="total") for i in (0, 1))
        )


def test_examples_are_others_than_the_batch(bench):
    stage = bench._stage(SMALL)
    assert stage.examples_x.shape[:2] == (2, 3) and stage.x.shape[:2] == (2, 4)
    assert (stage.examples_x != stage.x[:, :3]).any(axis=2).all(axis=1).all()


def test_metrics_of_a_rule_of_dense_networks_are_nan_elsewhere(bench):
    with patch.dict(RULES, backprop=None, node_perturbation_tutorial=None):  # neither is made
        exact = {"cosine": np.ones((2, 3))}
        setting = replace(SMALL, network="convolutional")
        with patch.dict(bench._measured, {("backprop", setting): exact}):
            assert np.isnan(bench.measure("node_perturbation_tutorial", setting)["cosine"]).all()
    with pytest.raises(ValueError, match=r"^--rules: expected none of dense networks alone"):
        Config(setting=setting)


def test_the_command_writes_json_and_figures(tmp_path):
    names = ["weight_perturbation_signs"]
    arguments = (
        "--quick", "--out", tmp_path, "--rules", *names, "--seeds", 2, "--draws", 4, "--examples", 3,
        "--sweeps", "num_samples", "--setting.width", SMALL.width, "--setting.batch-size", SMALL.batch_size,
    )  # fmt: skip
    measured, numbers = [], itertools.count()

    def interrupted(bench, rule, setting):
        if next(numbers) >= 1:
            raise KeyboardInterrupt
        measured.append((rule, setting))
        return of_bench(bench, rule, setting)

    of_bench, of_program = Bench.measure, Bench._program
    undrawn = patch.object(gradient_quality, "_save", lambda path, figure: path.touch())
    with undrawn, patch.object(gradient_quality, "pooled_images", lambda *_: images()):
        with patch.object(Bench, "measure", interrupted):
            code, _, err = call_main(gradient_quality.main, *arguments)
        assert code == 130 and "--resume to continue" in err
        kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").iterdir()}
        assert len(kept) == 1
        programs = []
        with patch.object(Bench, "_program", lambda *got: programs.append(got[1:]) or of_program(*got)):
            code, printed, err = call_main(gradient_quality.main, *arguments, "--resume")
        assert code == 0, err
    assert not set(measured) & set(programs) and len(programs) == 1  # of 2 settings
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".png"} == {
        "config.json", "gradient_quality.json",
    }  # fmt: skip
    content = json.loads((tmp_path / "gradient_quality.json").read_text())
    rows = content["rows"]
    assert [row["value"] for row in rows if row["layer"] == "total"] == [None, 1, 4]
    assert {row["rule"] for row in rows} == set(names) == set(content["flops"])
    assert all(set(row["metrics"]) == set(METRICS) for row in rows)
    numbers = rows[0]["metrics"]["relative_variance"]
    assert numbers["low"] < numbers["mean"] < numbers["high"] and numbers["theory"] > 0
    assert len(list(tmp_path.glob("*.png"))) == 4 and "weight perturbation signs" in printed
