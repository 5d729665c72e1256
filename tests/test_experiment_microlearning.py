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
from tests.compare import assert_close, assert_same

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")


def own(model, loss):
    """A rule of one's own, by its import path."""
    return ll.backprop(model, loss)


def test_a_rule_of_one_s_own_has_its_import_path_for_a_name():
    name = "tests.test_experiment_microlearning:own"
    config = Config(rules=(name,), hidden=(2,), scale="gradient")
    problem, (x, y) = make_problem(config), few_images().test
    model, loss = problem.model, problem.loss
    params = model.init(jax.random.key(0))
    found, expected = (
        jax.jit(rule.value_and_grad)(jax.random.key(0), params, (), x, y)
        for rule in (make_rule(name, config, optax.sgd(1.0)), own(model, loss))
    )
    assert_same(found, expected)


@pytest.mark.slow
def test_a_rule_of_one_s_own_on_another_network_in_other_steps(tmp_path):
    name = "tests.test_experiment_microlearning:own"
    config = Config(
        rules=(name, "eprop"), network="leaky", hidden=(2,), seeds=1, epochs=2, batch_size=2000, momentum=0.9,
        weight_decay=0.1, drops=(1,), scale="gradient", learning_rate=0.01, snr_images=3, draws=3,
        test_images=20, out=tmp_path / "run",
    )  # fmt: skip
    results = run_experiment(config)
    assert isinstance(results, xr.Dataset)
    assert list(results.rule.values) == [name, "eprop"] and results.cosine.sel(rule=name).min() > 0.999
    readout = results.cosine.sel(rule="eprop", layer="layer 2")  # its gradients are exact
    assert readout.min() > 0.999 > results.cosine.sel(rule="eprop", layer="layer 1").max()
    assert results.sizes["layer"] == 3 and json.loads(results.attrs["config"])["hidden"] == [2]
    assert all(np.isfinite(results[name]).all() for name in results.data_vars)
    # A colon is refused by some file systems.
    assert not [path for path in config.out.rglob("*") if ":" in path.name]
    assert jax.tree.leaves(load_params(config.out, rule=name))[0].shape[0] == 1


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
    shapes: dict[NetworkName, tuple[int, ...]] = {
        "dense": (784,),
        "convolutional": (32, 32, 1),
        "recurrent": (28, 28),
        "leaky": (28, 28),
    }
    for network, shape in shapes.items():
        problem = make_problem(Config(network=network))
        seen = np.asarray(problem.see(jnp.asarray(images)))
        assert seen.shape == (2, *shape)
        params = jax.eval_shape(problem.model.init, jax.random.key(0))
        output = jax.eval_shape(problem.model.apply, params, seen)
        assert output.shape == jax.eval_shape(problem.targets, np.eye(10)[:2]).shape
        assert output.shape == ((2, 28, 10) if network == "leaky" else (2, 10))
        assert len(params) == {"dense": 2, "convolutional": 5, "recurrent": 2, "leaky": 2}[network]
        if network in ("recurrent", "leaky"):
            np.testing.assert_allclose(seen[1, 3], (images[1, 84:112] - 0.1307) / 0.3081, rtol=1e-5)


def test_a_rule_is_judged_by_the_network_that_it_trains():
    """Decorrelated inputs, which are part of it; without them the loss is another."""
    config = Config(network="recurrent", hidden=(3,))
    problem, data = make_problem(config), few_images()
    data = seen_by(problem, data)
    rule = make_rule("decorrelated_feedback_alignment", config, optax.sgd(0.1))
    key = jax.random.key(0)
    params = problem.model.init(key)
    state = rule.init(key, params, data.test.x)
    state = state._replace(
        layers={name: layer._replace(R=2.0 * layer.R) for name, layer in state.layers.items()}
    )
    found = jax.jit(measures.evaluator(problem, rule))(key, params, state, data)["test_loss"]
    folded = ll.decorrelation.fold(problem.model, params, state.layers, data.test.x)
    by_hand = [
        jnp.mean(problem.loss(problem.model.apply(w, data.test.x), data.test.y)) for w in (folded, params)
    ]
    assert_close(found, by_hand[0], ulps=256)
    assert abs(found - by_hand[1]) > 1e-3


def test_a_leaky_network_is_judged_by_its_last_output():
    problem, labels = make_problem(Config(network="leaky")), jnp.eye(10)[jnp.array([3, 7])]
    output = jnp.zeros((2, 28, 10)).at[:, -1, 3].set(1.0)
    y = problem.targets(labels)
    assert problem.accuracy(output, y) == 0.5
    assert_close(problem.loss(output, y), ll.softmax_cross_entropy(output[:, -1], labels), ulps=8)
    wrong_before = jnp.ones_like(output).at[:, -1].set(output[:, -1]).at[:, 0, 5].set(9.0)
    assert_same(problem.loss(wrong_before, y), problem.loss(output, y))


def few_images():
    """Eight images of noise, as four updates of two an epoch."""
    x = np.random.default_rng(0).random((8, 784), np.float32)
    return ll.data.Splits(*[ll.data.Dataset(jnp.asarray(x), jnp.eye(10)[:8])] * 3)


def test_optimizer_by_hand():
    # velocity <- 0.9 velocity + g + decay w, w <- w - rate velocity, the rate a tenth from the drop on
    config = Config(scale="gradient", momentum=0.9, weight_decay=0.1, drops=(1,), hidden=(2,), batch_size=4)
    optimizer = make_setting("backprop", config, few_images()).optimizer(0.5)
    state, w, velocity = optimizer.init(3.0), 3.0, 0.0
    params = jnp.float32(3.0)
    for rate in (0.5, 0.5, 0.05):
        updates, state = optimizer.update(jnp.float32(1.0), state, params)
        params = jnp.asarray(optax.apply_updates(params, updates))
        velocity = 0.9 * velocity + 1 + 0.1 * w
        w -= rate * velocity
        assert params == pytest.approx(w, rel=1e-5)


def test_matched_rate_is_that_of_the_best_first_step():
    """Of the mean over seeds; with momentum so much less, since steps add up."""
    config = Config(rules=("backprop",), momentum=0.75, hidden=(2,), seeds=2, batch_size=4, test_images=8)
    data, problem = few_images(), make_problem(config)
    setting = make_setting("backprop", config, data)
    state = jax.vmap(setting.make_train().init, (0, None))(setting.keys["train"], data)

    def loss(params, number):
        x, y = (a[:number] for a in data.train)
        return jnp.mean(problem.loss(problem.model.apply(params, x), y))

    @jax.jit
    def after(params):
        grads = jax.grad(loss)(params, 4)
        return jax.vmap(lambda r: loss(jax.tree.map(lambda w, g: w - r * g, params, grads), 8))(rates)

    rates = np.array(measures.RATES, np.float32)
    means = np.mean([after(jax.tree.map(lambda w, i=i: w[i], state.params)) for i in range(2)], axis=0)
    assert find_rate(setting, state, data) == pytest.approx(0.25 * rates[means.argmin()])


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


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["gradient", "tutorial"])
def test_feedback_of_kolen_pollack_moves_as_the_weights_do(scale):
    """Their difference follows the optimizer on `(lambda + weight decay)` times itself, whatever the data."""
    config = Config(
        scale=scale, momentum=0.9, weight_decay=0.1, drops=(1,), epochs=2, hidden=(3,), batch_size=2
    )
    data = few_images()
    rate = 0.02
    setting = make_setting("kolen_pollack", config, data)
    run = setting.make_train(rate)
    start = run.init(jax.random.key(1), data)
    end = jax.jit(run)(jax.random.key(1), data).state

    def difference(state):
        return np.asarray(state.params[1]["w"] - state.rule_state.feedback[1]["w"])

    expected, velocity = difference(start), 0.0
    decay = 0.1 * {"gradient": 2 / config.batch_size, "tutorial": 1.0}[scale] + 0.1
    for step in range(8):
        velocity = 0.9 * velocity + decay * expected
        expected = expected - rate * (1.0 if step < 4 else 0.1) * velocity
    np.testing.assert_allclose(difference(end), expected, atol=1e-5)  # 8 steps of numbers below 1
    assert np.abs(difference(start)).max() > 0.05


@pytest.mark.slow
def test_signals_in_notebook_units_are_those_of_the_gradients():
    """A batch of one: half the gradient, and the whole decay, of the bias too."""
    model, (x, y) = make_problem(Config(hidden=(3,))).model, few_images().test
    rule = notebook.kolen_pollack(model, ll.squared_error, optimizer=optax.sgd(0.1), decay=0.3)
    exact = ll.feedback_alignment(model, ll.squared_error)
    key = jax.random.key(0)
    params = model.init(key)
    state = rule.init(key, params, x)
    _, grads, _ = rule.value_and_grad(key, params, state, x[:1], y[:1])
    fixed = exact.init(key, params, x)._replace(feedback=state.feedback)
    _, aligned, _ = exact.value_and_grad(key, params, fixed, x[:1], y[:1])
    expected = jax.tree.map(
        lambda g, w, d: 0.5 * g + d * w, aligned, params, ({"w": 0, "b": 0}, {"w": 0.3, "b": 0.3})
    )
    assert rule.signals is not None
    deltas, rest = rule.signals(key, params, state, x[:1], y[:1])
    pulled = jax.tree.map(jnp.add, ll.tapped(model).pull_back(params, x[:1], deltas), rest)
    for got in (grads, pulled):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, expected)
