"""The main job: its networks, rules, optimizers and keys by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr

import lax_learning as ll
from experiments import load_params, reporting
from experiments.microlearning import measures, notebook
from experiments.microlearning.__main__ import find_rate, make_setting
from experiments.microlearning.__main__ import run as run_experiment
from experiments.microlearning.config import Config, NetworkName
from experiments.microlearning.networks import make_problem, seen_by
from experiments.microlearning.rules import make_rule
from tests.compare import assert_close, assert_near, assert_same, slow_but

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")


OWN = "tests.test_experiment_microlearning:own"


def own(model, loss):
    """A rule of one's own, by its import path."""
    return ll.backprop(model, loss)


def few_images():
    """Eight images of noise, as four updates of two an epoch."""
    x = np.random.default_rng(0).random((8, 784), np.float32)
    return ll.data.Splits(*[ll.data.Dataset(jnp.asarray(x), jnp.eye(10)[:8])] * 3)


def test_a_rule_of_one_s_own_has_its_import_path_for_a_name():
    config = Config(rules=(OWN,), hidden=(2,), scale="gradient")
    problem, (x, y) = make_problem(config), few_images().test
    params = problem.model.init(jax.random.key(0))
    found, expected = (
        jax.jit(rule.value_and_grad)(jax.random.key(0), params, (), x, y)
        for rule in (make_rule(OWN, config, optax.sgd(1.0)), own(problem.model, problem.loss))
    )
    assert_same(found, expected)


@pytest.mark.slow
def test_a_rule_of_one_s_own_on_another_network_in_other_steps(tmp_path):
    config = Config(
        rules=(OWN, "eprop"), network="leaky", hidden=(2,), seeds=1, epochs=2, batch_size=2000, momentum=0.9,
        weight_decay=0.1, drops=(1,), scale="gradient", learning_rate=0.01, snr_images=3, draws=3,
        test_images=20, out=tmp_path / "run",
    )  # fmt: skip
    results = run_experiment(config)
    assert isinstance(results, xr.Dataset)
    assert list(results.rule.values) == [OWN, "eprop"] and results.cosine.sel(rule=OWN).min() > 0.999
    readout = results.cosine.sel(rule="eprop", layer="layer 2")  # its gradients are exact
    assert readout.min() > 0.999 > results.cosine.sel(rule="eprop", layer="layer 1").max()
    assert results.sizes["layer"] == 3 and json.loads(results.attrs["config"])["hidden"] == [2]
    assert all(np.isfinite(results[name]).all() for name in results.data_vars)
    # A colon is refused by some file systems.
    assert not [path for path in config.out.rglob("*") if ":" in path.name]
    assert jax.tree.leaves(load_params(config.out, rule=OWN))[0].shape[0] == 1


def test_bad_rules_of_one_s_own_are_refused():
    for path, pattern in {
        "mine": "any of backprop, .* or MODULE:FUNCTION, got mine",
        **{path: f"MODULE:FUNCTION, got {path}" for path in ("no_module:rule", "json:no_rule", "json:")},
    }.items():
        with pytest.raises(ValueError, match=f"^--rules: expected {pattern}"):
            Config(rules=(path,))
    with pytest.raises(ValueError, match=r"^--rules: expected builtins:print.* return a Rule, got NoneType"):
        make_rule("builtins:print", Config(), optax.sgd(1.0))


def test_intervals_by_hand():
    mean, low, high, n = reporting.interval(np.array([1.0, 2.0, 3.0, np.nan]))
    # t(0.975, 2) = 4.302653; standard error 1 / sqrt(3)
    assert (mean, n) == (2.0, 3)
    assert high - mean == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6) == mean - low
    assert np.isnan(reporting.interval(np.array([1.0]))[1])


def test_images_as_networks_see_them():
    images = np.random.default_rng(0).random((2, 784), np.float32)
    expected: dict[NetworkName, tuple[tuple[int, ...], int]] = {
        "dense": ((784,), 2),
        "convolutional": ((32, 32, 1), 5),
        "recurrent": ((28, 28), 2),
        "leaky": ((28, 28), 2),
    }
    for network, (shape, layers) in expected.items():
        problem = make_problem(Config(network=network))
        seen = np.asarray(problem.see(jnp.asarray(images)))
        assert seen.shape == (2, *shape)
        params = jax.eval_shape(problem.model.init, jax.random.key(0))
        output = jax.eval_shape(problem.model.apply, params, seen)
        assert output.shape == jax.eval_shape(problem.targets, np.eye(10)[:2]).shape
        assert output.shape == ((2, 28, 10) if network == "leaky" else (2, 10)) and len(params) == layers
        if shape == (28, 28):
            np.testing.assert_allclose(seen[1, 3], (images[1, 84:112] - 0.1307) / 0.3081, rtol=1e-5)


def test_a_rule_is_judged_by_the_network_that_it_trains():
    """Decorrelated inputs, which are part of it; without them the loss is another."""
    config = Config(network="recurrent", hidden=(3,))
    problem, key = make_problem(config), jax.random.key(0)
    rule = make_rule("decorrelated_feedback_alignment", config, optax.sgd(0.1))

    @jax.jit
    def losses(data):
        x, y = data.test
        params = problem.model.init(key)
        state = rule.init(key, params, x)
        doubled = {name: layer._replace(R=2.0 * layer.R) for name, layer in state.layers.items()}
        found = measures.evaluator(problem, rule)(key, params, state._replace(layers=doubled), data)
        folded = tuple(
            {name: (1.0 + (f"{i}/{name}" in doubled)) * w for name, w in weights.items()}
            for i, weights in enumerate(params)
        )
        by_hand = (jnp.mean(problem.loss(problem.model.apply(w, x), y)) for w in (folded, params))
        return found["test_loss"], *by_hand

    found, with_r, without = losses(seen_by(problem, few_images()))
    assert_close(found, with_r, ulps=256)
    assert abs(found - without) > 1e-3


def test_a_leaky_network_is_judged_by_its_last_output():
    problem, labels = make_problem(Config(network="leaky")), jnp.eye(10)[jnp.array([3, 7])]
    output = jnp.zeros((2, 28, 10)).at[:, -1, 3].set(1.0)
    y = problem.targets(labels)
    assert problem.accuracy(output, y) == 0.5
    assert_close(problem.loss(output, y), ll.softmax_cross_entropy(output[:, -1], labels), ulps=8)
    wrong_before = jnp.ones_like(output).at[:, -1].set(output[:, -1]).at[:, 0, 5].set(9.0)
    assert_same(problem.loss(wrong_before, y), problem.loss(output, y))


def test_matched_rate_is_that_of_the_best_first_step():
    """Of the mean over seeds; with momentum so much less, since steps add up."""
    config = Config(rules=("backprop",), momentum=0.75, hidden=(2,), seeds=2, batch_size=4, test_images=8)
    data, problem = few_images(), make_problem(config)
    setting, rates = make_setting("backprop", config, data), np.array(measures.RATES, np.float32)
    state = jax.vmap(setting.make_train().init, (0, None))(setting.keys["train"], data)

    def loss(params, number):
        x, y = (a[:number] for a in data.train)
        return jnp.mean(problem.loss(problem.model.apply(params, x), y))

    @jax.jit
    @jax.vmap
    def after(params):
        grads = jax.grad(loss)(params, 4)
        return jax.vmap(lambda r: loss(jax.tree.map(lambda w, g: w - r * g, params, grads), 8))(rates)

    best = rates[np.mean(after(state.params), axis=0).argmin()]
    assert find_rate(setting, state, data) == pytest.approx(0.25 * best)


def test_every_seed_and_purpose_has_a_key_of_its_own(monkeypatch):
    config = Config(hidden=(2,), seeds=2, batch_size=4, snr_images=3)
    setting = make_setting("backprop", config, few_images())
    keys, seen = np.concatenate([jax.random.key_data(k) for k in setting.keys.values()]), []
    assert set(setting.keys) == {"train", "test", "measure", "search"} and len(np.unique(keys, axis=0)) == 8
    monkeypatch.setattr(measures, "moments_over_examples", lambda *_: lambda key, *_: seen.append(key))
    monkeypatch.setattr(measures, "draw_moments", lambda rule, key, *_: seen.append(key))
    monkeypatch.setattr(measures, "of_moments", lambda *_: None)
    params = setting.problem.model.init(jax.random.key(0))
    measures.measurement("backprop", config, optax.sgd(1.0))(jax.random.key(1), params, (), few_images())
    assert len(seen) == 2 and (seen[0] != seen[1])


@pytest.mark.parametrize("scale", slow_but(["gradient"], ["gradient", "tutorial"]))
def test_feedback_of_kolen_pollack_moves_as_the_weights_do(scale):
    """Their difference follows the optimizer on `(lambda + weight decay)` times itself, whatever the data."""
    data, options = few_images(), {"momentum": 0.9, "weight_decay": 0.1, "drops": (1,), "epochs": 2}
    config = Config(scale=scale, hidden=(3,), batch_size=2, **options)
    train = make_setting("kolen_pollack", config, data).make_train(0.02)

    @jax.jit
    def differences(data):
        start = train.init(jax.random.key(1), data)
        end = jax.lax.fori_loop(0, 8, lambda step, state: train.update(data, state, step)[0], start)
        return [state.params[1]["w"] - state.rule_state.feedback[1]["w"] for state in (start, end)]

    expected, found = map(np.asarray, differences(data))
    assert np.abs(expected).max() > 0.05
    velocity = 0.0
    for rate in [0.02] * 4 + [0.002] * 4:  # a tenth from the drop on
        velocity = 0.9 * velocity + (0.1 + 0.1) * expected  # lambda is 0.1 * 2 / 2 in units of the gradient
        expected = expected - rate * velocity
    np.testing.assert_allclose(found, expected, atol=1e-5)  # 8 steps of numbers below 1


@pytest.mark.slow
def test_signals_in_notebook_units_are_those_of_the_gradients():
    """A batch of one: with the decay, of the bias too."""
    model, (x, y) = make_problem(Config(hidden=(3,))).model, few_images().test
    rule = notebook.kolen_pollack(model, ll.squared_error, optimizer=optax.sgd(0.1), decay=0.3)
    key = jax.random.key(0)
    params = model.init(key)
    state = rule.init(key, params, x)
    _, grads, _ = rule.value_and_grad(key, params, state, x[:1], y[:1])
    assert rule.signals is not None
    deltas, rest = rule.signals(key, params, state, x[:1], y[:1])
    pulled = jax.tree.map(jnp.add, ll.tapped(model).pull_back(params, x[:1], deltas), rest)
    assert_near(pulled, grads)
