"""The benchmark of gradient quality: against closed forms, its registry, its sweeps and its command."""

import json
import os
import sys
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning as ll
from benchmarks import gradient_quality
from benchmarks.quality import METRICS, RULES, SWEEPS, Bench, Config, Setting, averaged, measure
from benchmarks.quality.theory import node_perturbation, predict, weight_perturbation

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(90)
SMALL = Setting(width=4, batch_size=4)


def images(count=12, side=4):
    keys = jax.random.split(KEY, 2)
    labels = jax.nn.one_hot(jax.random.randint(keys[1], (count,), 0, 3), 3)
    return np.asarray(jax.random.uniform(keys[0], (count, side, side))), np.asarray(labels)


@pytest.fixture(scope="module")
def bench():
    return Bench(*images(), seeds=2, draws=4)


def linear_loss(output, y):
    return jnp.sum(output * y, axis=1)


def measured(make_rule, network, batch_size, num_draws, loss=linear_loss):
    """A rule's metrics on one batch, the exact gradient and the exact signals."""
    exact, rule = ll.backprop(network, loss), make_rule(network, loss)
    assert exact.signals is not None
    exact_signals = exact.signals

    def everything(key):
        x_key, y_key, key = jax.random.split(key, 3)
        params = rule.init(key)
        x = jax.random.normal(x_key, (batch_size, *network.input_shape))
        y = jax.random.normal(y_key, (batch_size, 3))
        _, grads = exact.value_and_grad(key, params, x, y)
        found = measure(rule, params, x, y, key, num_draws, reference=grads)
        return found, grads, exact_signals(key, params, x, y)

    return jax.jit(everything)(KEY)


def test_backprop_is_exact():
    found, *_ = measured(ll.backprop, ll.mlp((5, 4, 3), activation=jnp.tanh), 4, 6, ll.squared_error)
    assert set(METRICS) <= set(found)
    np.testing.assert_allclose(found["cosine"], np.ones(3), atol=1e-6)
    np.testing.assert_allclose(found["angle_degrees"], np.zeros(3), atol=0.1)
    np.testing.assert_allclose(found["relative_bias"], np.zeros(3), atol=1e-10)
    np.testing.assert_array_equal(found["relative_variance"], np.zeros(3))
    assert (found["snr"] > 0).all()  # of the choice of examples


@pytest.mark.parametrize("num_samples", [1, 5])
@pytest.mark.parametrize(
    ("name", "make_rule", "num_units_or_weights"),
    [
        ("weight_perturbation", partial(ll.weight_perturbation, sigma=0.5), 18),
        ("node_perturbation", partial(ll.node_perturbation, sigma=0.5), 3),
    ],
)
def test_variance_of_a_linear_loss_is_that_of_theory(name, make_rule, num_units_or_weights, num_samples):
    def make_averaged(network, loss):
        return averaged(make_rule(network, loss), num_samples)

    found, grads, signals = measured(make_averaged, ll.mlp((5, 3)), 1, 2000)
    theory = predict(name, grads, signals, num_samples)
    # One example and one layer: (D + 1) / K for D weights and biases, (M + 1) / K for M units.
    np.testing.assert_allclose(
        theory["relative_variance"], (num_units_or_weights + 1) / num_samples, rtol=1e-5
    )
    for metric, expected in {"relative_variance": theory["relative_variance"], "relative_bias": 0.0}.items():
        deviation = (found[metric] - expected) / found[f"{metric}_error"]
        assert (np.abs(deviation) < 5).all(), (metric, found[metric], expected)
    assert (found["relative_variance_error"] < 0.1 * found["relative_variance"]).all()


def test_theory_of_two_layers_and_a_batch():
    """Against the covariance over many draws, for the limits of small noise; layers apart."""
    network = ll.mlp((5, 4, 3), activation=jnp.tanh)
    for theory, perturb in [(weight_perturbation, "weights"), (node_perturbation, "activities")]:
        make_rule = partial(ll.forward_gradient, perturb=perturb)
        found, grads, signals = measured(make_rule, network, 6, 1000, ll.squared_error)
        deviation = found["relative_variance"] - theory(grads, signals)
        assert (np.abs(deviation) < 5 * found["relative_variance_error"]).all(), perturb


def test_squared_cosine_of_averages_is_near_that_of_theory():
    def make_averaged(network, loss):
        return averaged(ll.forward_gradient(network, loss), 20)

    found, grads, signals = measured(make_averaged, ll.mlp((5, 3)), 2, 500)
    expected = predict("forward_gradient", grads, signals, 20)["cosine_squared"]
    np.testing.assert_allclose(expected, 20 / (20 + 19), rtol=1e-5)
    np.testing.assert_allclose(found["cosine_squared"], expected, atol=0.03)


@pytest.mark.parametrize("name", list(SWEEPS))
def test_sweeps_have_named_axes_and_finite_numbers(name, bench):
    value = {"network": "convolutional", "sigma": 0.1}.get(name, 2)
    settings = [SMALL, replace(SMALL, **{name: value})]
    rules = ["node_perturbation"]
    sweep = bench.sweep(name, rules, settings)
    assert set(sweep.cosine.dims) == {"rule", name, "seed", "layer"}
    assert list(sweep[name].values) == [getattr(setting, name) for setting in settings]
    assert list(sweep.rule.values) == rules and sweep.sizes["seed"] == 2
    for metric in METRICS:
        assert np.isfinite(sweep[metric].sel(layer=["1", "2", "total"])).all(), metric
    with pytest.raises(AssertionError):  # the axis is varied
        np.testing.assert_array_equal(
            *(sweep.angle_degrees.isel({name: i}).sel(layer="total") for i in (0, 1))
        )


def test_a_rule_of_ones_own(bench):
    def half(network, loss):
        rule = ll.backprop(network, loss)

        def value_and_grad(*args):
            value, grads = rule.value_and_grad(*args)
            return value, jax.tree.map(lambda g: g / 2, grads)

        return rule._replace(value_and_grad=value_and_grad)

    with patch.dict(RULES, mine=half, noisy=lambda n, l, sigma: ll.node_perturbation(n, l, sigma=sigma)):
        found = bench.measure("mine", SMALL)
        np.testing.assert_allclose(found["cosine"], np.ones((2, 3)), atol=1e-6)
        np.testing.assert_allclose(found["relative_bias"], np.full((2, 3), 0.25), rtol=1e-4)
        ours, theirs = (bench.measure(name, SMALL)["cosine"] for name in ("noisy", "node_perturbation"))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
        assert Config(rules=("mine",)).rules == ("mine",)


def call(*arguments):
    with (
        patch.object(sys, "argv", ["gradient_quality", *map(str, arguments)]),
        patch.dict(os.environ, COLUMNS="200"),
        patch.object(gradient_quality, "compile_quickly", lambda: None),  # JAX runs already
    ):
        try:
            return gradient_quality.main()
        except SystemExit as end:
            return end.code


def test_the_command_writes_json_and_figures(tmp_path, capsys):
    names = ["node_perturbation", "feedback_alignment"]
    with patch.object(gradient_quality, "pooled_images", lambda *_: images(64)):
        code = call(
            "--quick", "--out", tmp_path, "--rules", *names, "--seeds", 2, "--draws", 4,
            "--sweeps", "num_samples", "--setting.width", 4,
        )  # fmt: skip
    assert code == 0
    content = json.loads((tmp_path / "gradient_quality.json").read_text())
    assert {row["sweep"] for row in content["rows"]} == {"num_samples"}
    assert {row["rule"] for row in content["rows"]} == set(names) == set(content["flops"])
    assert {row["metric"] for row in content["rows"]} == set(METRICS)
    assert all(flops > 0 for flops in content["flops"].values())
    assert all(np.isfinite(row["mean"]) for row in content["rows"] + content["default"])
    figures = {path.stem for path in tmp_path.glob("*.png")}
    drawn = {"by_layer", "bias_against_variance", "error_against_compute"}
    assert figures == {"against_num_samples", *drawn}
    printed = capsys.readouterr().out
    assert all(name.replace("_", " ") in printed for name in names)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--sweeps", "loudness"), "sweeps"),
        (("--rules", "magic"), "rules"),
        (("--setting.sigma", 0), "sigma"),
        (("--setting.sigma", -1), "sigma"),
        (("--setting.num-samples", 0), "num_samples"),
        (("--draws", 0), "draws"),
        (("--seeds", 0), "seeds"),
        (("--pooled", 3), "pooled"),
    ],
)
def test_bad_input_is_refused_by_name(arguments, named, tmp_path, capsys):
    assert call("--out", tmp_path / "out", *arguments) == 2
    assert f"{named}: expected" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bad_calls_are_refused_by_name(bench):
    with pytest.raises(ValueError, match="num_draws"):
        measured(ll.backprop, ll.mlp((5, 3)), 2, 0)
    with pytest.raises(ValueError, match="rules"):
        bench.measure("magic", SMALL)
