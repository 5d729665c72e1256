"""The benchmark of gradient quality: against closed forms, its registry, its sweeps and its command."""

import json
from dataclasses import replace
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning as ll
from benchmarks import gradient_quality, machine
from benchmarks.gradient_quality import Config
from benchmarks.quality.measures import METRICS, measure_draws
from benchmarks.quality.problems import Problem, weights_after
from benchmarks.quality.rules import make_rule
from benchmarks.quality.settings import SWEEPS, Setting
from benchmarks.quality.sweeps import Bench, _shapes
from benchmarks.quality.theory import Exact, exact_signals, predict
from tests.command_line import call_main
from tests.compare import differs, normal, slow_but

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(90)
SMALL = Setting(width=4, batch_size=4)


def images(*_):
    rng = np.random.default_rng(0)
    x, labels = rng.uniform(size=(12, 4, 4)), rng.integers(0, 3, 12)
    return x.astype(np.float32), np.eye(3, dtype=np.float32)[labels]


@pytest.fixture(scope="module")
def bench():
    return Bench(*images(), seeds=2, draws=4, examples=3)


OF_THEORY = [("node_perturbation_layerwise", 1), ("weight_perturbation_signs", 6)]
OF_THEORY += [("forward_gradient_activities", 6)]


@pytest.mark.parametrize(("name", "batch_size"), slow_but(OF_THEORY[:1], OF_THEORY))
def test_theory_of_two_layers(name, batch_size):
    """Against many draws of small noise, layers apart; the squared cosine is a ratio of means."""
    model, loss = ll.mlp((5, 8, 4), activation=jnp.tanh), ll.squared_error
    rule, x, y = make_rule(name, model, loss, 1e-2), normal(0, batch_size, 5), normal(1, batch_size, 4)
    params = [{"w": 0.4 * np.asarray(normal(2 + n, n, m)), "b": jnp.zeros(m)} for n, m in ((5, 8), (8, 4))]

    @jax.jit
    def run(key):
        exact = exact_signals(model, loss, key, params, x, y)
        return measure_draws(rule, params, (), x, y, key, 1000, reference=exact.grads), exact

    found, exact = run(KEY)
    theory = jax.jit(lambda exact: predict(name, exact, 1))(exact)
    for metric, tolerance in {"relative_variance": 0.0, "snr_draws": 0.0, "cosine_squared": 0.05}.items():
        deviation = np.abs(found[metric] - theory[metric]) - tolerance * theory[metric]
        assert (deviation < 5 * found[f"{metric}_error"]).all(), (metric, found[metric], theory[metric])


def test_variance_of_random_signs_is_less_by_two():
    names = "weight_perturbation", "weight_perturbation_signs"
    predicted = jax.jit(lambda g: [predict(name, Exact(g, [], []), 1)["relative_variance"] for name in names])
    found = predicted(({"w": np.ones((5, 3)), "b": np.ones(3)},))
    np.testing.assert_allclose(found, [[18 + 1] * 2, [18 - 1] * 2])


def test_operations_are_those_counted_by_hand(bench):
    """Products of a batch of 4 with weights of 16 x 4 and 4 x 3, a product and a sum each."""
    first, second = (2 * 4 * size for size in (16 * 4, 4 * 3))
    for rule, products in {
        "backprop": 3,  # forward, weights' gradients, the output's signal back
        "weight_perturbation": 2,  # without and with noise
        "forward_gradient": 3,  # forward, tangents of weights and of the hidden activity
        "node_perturbation": 3,  # of the second without and with noise, and weights' gradients
    }.items():
        assert bench.flops(rule, SMALL) == 2 * first + products * second, rule


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_sweeps_have_finite_numbers(name, bench):
    value = {"network": "convolutional", "sigma": 0.1}.get(name, 2)
    settings = [SMALL, replace(SMALL, **{name: value})]
    rule = "weight_perturbation_signs"  # it compiles quickly
    rows = bench.sweep(name, [rule], settings)
    layers = [(at, str(i)) for at in settings for i in [*range(1, at.depth + 2), "total"]]
    assert [(row["value"], row["layer"]) for row in rows] == [(getattr(at, name), i) for at, i in layers]
    assert all(set(row["metrics"]) == set(METRICS) for row in rows)
    errors = bench.measure(rule, SMALL)["cosine_error"][:, 0]
    found = rows[0]["metrics"]["cosine"]["standard_error"]  # of the mean over two seeds
    np.testing.assert_allclose(found, np.sqrt(np.sum(errors**2)) / 2, rtol=1e-3)
    first, second = (bench.measure(rule, at)["relative_variance"][:, -1] for at in settings)
    assert (first != second).any()  # the axis is varied; signs have directions that sigma seldom changes


def test_examples_are_others_than_the_batch(bench):
    stage, later = (bench._stage(_shapes(SMALL), updates) for updates in (0, 2))
    assert stage.examples_x.shape[:2] == (2, 3) and stage.x.shape[:2] == (2, 4)
    assert (stage.examples_x != stage.x[:, :3]).any(axis=2).all(axis=1).all()
    assert differs(later.params, later.start) and not differs(later.start, stage.params)


def test_updates_before_measuring_go_down_on_batches_of_their_own():
    model, x = ll.Model(lambda w, x: x), jnp.arange(1.0, 100)[:, None]
    problem = Problem(model, ll.squared_error, x, x)
    rule = ll.Rule(lambda *_: (), lambda key, w, state, x, y: (0.0, jnp.mean(x), state))
    after = jax.jit(lambda updates: weights_after(KEY, problem, rule, jnp.zeros(()), updates, 4))
    first, both = after(1), after(2)
    assert first < 0 and both < first and both != 2 * first


def test_metrics_of_a_rule_of_dense_networks_are_nan_elsewhere():
    bench, setting = Bench(*images(), seeds=2, draws=4, examples=3), replace(SMALL, network="convolutional")
    measure, exact = bench.measure, {"cosine": np.ones((2, 3))}
    measured = lambda rule, at: exact if rule == "backprop" else measure(rule, at)  # noqa: E731
    with patch.object(bench, "measure", measured):
        assert np.isnan(bench.measure("node_perturbation_tutorial", setting)["cosine"]).all()
    with pytest.raises(ValueError, match=r"^--rules: expected none that works only on dense networks"):
        Config(setting=setting)


def test_the_command_writes_json_and_figures(bench, tmp_path):
    name = "weight_perturbation_signs"
    arguments = ["--quick", "--out", tmp_path, "--rules", name, "--sweeps", "num_samples", "--seeds", 2]
    arguments += ["--draws", 4, "--examples", 3, "--setting.width", 4, "--setting.batch-size", 4]

    def interrupted(bench, rules, settings, done):
        bench.measure(rules[0], settings[0])
        raise KeyboardInterrupt

    def run(*more):
        return call_main(gradient_quality.main, *arguments, *more)

    with (
        patch.object(machine, "save", lambda figure, path: path.touch()),
        patch.object(gradient_quality, "pooled_images", images),
        patch.object(Bench, "_make_program", lambda _, *given: bench._program(*given)),  # compiled once
        patch.object(Bench, "_make_stage_program", lambda _, shapes: bench._stage_program(shapes)),
    ):
        with patch.object(Bench, "measure_all", interrupted):
            code, _, err = run()
        assert code == 130 and "--resume to continue" in err
        (kept,) = (tmp_path / "checkpoints").iterdir()
        with np.load(kept) as held:
            np.savez(kept, **{**held, "cosine": np.full_like(held["cosine"], 0.25)})
        code, printed, err = run("--resume")
    assert code == 0, err
    files = {path.name for path in tmp_path.iterdir() if path.suffix != ".png"}
    assert files == {"config.json", "gradient_quality.json"}
    content = json.loads((tmp_path / "gradient_quality.json").read_text())
    rows = content["rows"]
    totals = {row["value"]: row["metrics"] for row in rows if row["layer"] == "total"}
    assert list(totals) == [None, 1, 4] and totals[None] == totals[1]
    assert [totals[of]["cosine"]["mean"] == 0.25 for of in (1, 4)].count(True) == 1  # one was kept
    assert {row["rule"] for row in rows} == {name} == set(content["flops"])
    assert all(set(row["metrics"]) == set(METRICS) for row in rows)
    numbers = rows[0]["metrics"]["relative_variance"]
    assert numbers["low"] < numbers["mean"] < numbers["high"] and numbers["theory"] > 0
    assert len(list(tmp_path.glob("*.png"))) == 4 and "weight perturbation signs" in printed
