"""The main job: its networks, rules, optimizers and keys by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lax_learning as ll
from experiments.microlearning import measures, notebook
from experiments.microlearning.__main__ import Setting, find_rate, keys_of
from experiments.microlearning.config import Config
from experiments.microlearning.networks import make_problem, seen_by
from experiments.microlearning.rules import make_rule
from tests.compare import assert_close, assert_near, assert_same, slow_but

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")


def few_images():
    """Eight images of noise in each part, of other digits, as four updates of two an epoch."""
    parts = np.random.default_rng(0).random((3, 8, 784), np.float32)
    return ll.data.Splits(*(ll.data.Dataset(x, np.eye(8, 10, k, np.float32)) for k, x in enumerate(parts)))


def test_a_rule_of_one_s_own_is_made_and_bad_ones_are_refused():
    assert isinstance(make_rule("lax_learning:backprop", Config(), optax.sgd(1.0)), ll.Rule)
    for path in ("mine", "no_module:rule", "json:no_rule", "json:"):
        with pytest.raises(ValueError, match=f"^--rules: expected .*MODULE:FUNCTION, got {path}"):
            Config(rules=(path,))
    with pytest.raises(ValueError, match=r"^--rules: expected builtins:print.* return a Rule, got NoneType"):
        make_rule("builtins:print", Config(), optax.sgd(1.0))


@pytest.mark.parametrize(
    ("network", "seen", "output"),
    [
        ("dense", (8, 784), (8, 10)),
        ("convolutional", (8, 32, 32, 1), (8, 10)),
        ("recurrent", (8, 28, 28), (8, 10)),
        ("leaky", (8, 28, 28), (8, 28, 10)),
    ],
)
def test_images_as_networks_see_them(network, seen, output):
    problem = make_problem(Config(network=network))
    x, y = jax.eval_shape(lambda: seen_by(problem, few_images())).train
    params = jax.eval_shape(problem.model.init, jax.random.key(0))
    assert x.shape == seen and y.shape == jax.eval_shape(problem.model.apply, params, x).shape == output


def test_a_rule_is_judged_by_the_network_that_it_trains():
    """Also of inputs that are decorrelated; without R the loss is another."""
    config = Config(network="recurrent", hidden=(3,))
    problem, key = make_problem(config), jax.random.key(0)
    rule = make_rule("decorrelated_feedback_alignment", config, optax.sgd(0.1))

    @jax.jit
    def losses(data):
        x, y = data.test
        params = problem.model.init(key)
        state = rule.init(key, params, x)
        doubled = {name: layer._replace(R=2.0 * layer.R) for name, layer in state.layers.items()}
        found = measures.evaluate(problem, rule, key, params, state._replace(layers=doubled), data)
        models = ll.decorrelation.wrap(problem.model, doubled), problem.model
        return found["test_loss"], *(jnp.mean(problem.loss(of.apply(params, x), y)) for of in models)

    found, with_r, without = losses(seen_by(problem, few_images()))
    assert_close(found, with_r, ulps=256)
    assert abs(found - without) > 1e-3


def test_a_leaky_network_reads_rows_and_is_judged_by_its_last_output():
    problem, labels, images = make_problem(Config(network="leaky")), np.eye(10)[[3, 7]], few_images().train.x
    output = np.zeros((2, 28, 10))
    output[:, -1, 3] = 1.0
    wrong_before = np.where(np.arange(28)[:, None] < 27, 9.0 * np.eye(10)[5], output)

    @jax.jit
    def judged(output):
        y = problem.targets(jnp.asarray(labels))
        return problem.accuracy(output, y), problem.loss(output, y)

    found = judged(output)
    assert_near(found, (0.5, np.log(9 + np.e) - [1, 0]))
    assert_same(judged(wrong_before), found)
    row = problem.see(jnp.asarray(images))[1, 3]
    np.testing.assert_allclose(row, (images[1, 84:112] - 0.1307) / 0.3081, rtol=1e-5)


def test_matched_rate_is_that_of_the_best_first_step():
    """By validation images, of the mean over seeds; with momentum so much less, since steps add up."""
    config = Config(rules=("backprop",), momentum=0.75, hidden=(2,), seeds=2, batch_size=4, test_images=8)
    data, problem = few_images(), make_problem(config)
    setting, rates = Setting("backprop", config, 2), np.array(measures.RATES, np.float32)
    state = jax.jit(jax.vmap(setting.train().init, (0, None)))(keys_of(config)["train"], data)

    def loss(params, images):
        return jnp.mean(problem.loss(problem.model.apply(params, images.x), images.y))

    @jax.jit
    @jax.vmap
    def after(params):
        grads = jax.grad(loss)(params, ll.data.Dataset(*(a[:4] for a in data.train)))
        moved = lambda r: jax.tree.map(lambda w, g: w - r * g, params, grads)  # noqa: E731
        return jax.vmap(lambda rate: loss(moved(rate), data.validation))(rates)

    best = rates[np.mean(after(state.params), axis=0).argmin()]
    assert find_rate(setting, state, data) == pytest.approx(0.25 * best)


def test_every_seed_and_purpose_has_a_key_of_its_own(monkeypatch):
    config, seen = Config(hidden=(2,), seeds=2, snr_images=3), []
    keys = keys_of(config)
    assert set(keys) == {"train", "test", "measure", "search"}
    assert len(np.unique(np.concatenate([jax.random.key_data(k) for k in keys.values()]), axis=0)) == 8
    monkeypatch.setattr(measures, "moments_over_examples", lambda *arguments: seen.append(arguments[3]))
    monkeypatch.setattr(measures, "draw_moments", lambda *arguments: seen.append(arguments[1]))
    monkeypatch.setattr(measures, "of_moments", lambda *_: None)

    @jax.jit
    def measuring(key):
        params = make_problem(config).model.init(key)
        measures.measure_noise("backprop", config, optax.sgd(1.0), key, params, (), few_images())
        return [jax.random.key_data(each) for each in seen]

    assert len(np.unique(measuring(jax.random.key(1)), axis=0)) == len(seen) == 2


@pytest.mark.parametrize("scale", slow_but(["gradient"], ["gradient", "tutorial"]))
def test_feedback_of_kolen_pollack_moves_as_the_weights_do(scale):
    """Their difference follows the optimizer on `(lambda + weight decay)` times itself, whatever the data."""
    options = {"momentum": 0.9, "weight_decay": 0.1, "drops": (1,), "epochs": 2, "batch_size": 2}
    config = Config(scale=scale, hidden=(3,), **options)
    model, loss = make_problem(config)[:2]
    setting = Setting("kolen_pollack", config, 4)
    train, rule = setting.train(0.02), setting.rule(0.02)
    plain = ll.kolen_pollack(model, loss, optimizer=optax.sgd(1.0), decay=0.1)

    @jax.jit
    def differences(data):
        start = train.init(jax.random.key(1), data)
        end = jax.lax.fori_loop(0, 8, lambda step, state: train.update(data, state, step)[0], start)
        weights = [state.params[1]["w"] - state.rule_state.feedback[1]["w"] for state in (start, end)]
        args = jax.random.key(1), start.params, start.rule_state, *(a[:2] for a in data.test)
        decayed, grads = (of.value_and_grad(*args)[1][1]["b"] for of in (rule, plain))
        return weights, decayed - grads, start.params[1]["b"]

    (expected, found), decay, bias = jax.tree.map(np.asarray, differences(few_images()))
    np.testing.assert_allclose(decay, 0.1 * bias, atol=1e-6)  # the bias is a column of the weights
    assert np.abs(expected).max() > 0.05
    velocity = 0.0
    for rate in [0.02] * 4 + [0.002] * 4:  # a tenth from the drop on
        velocity = 0.9 * velocity + (0.1 + 0.1) * expected  # lambda is 0.1 * 2 / 2 in units of the gradient
        expected = expected - rate * velocity
    np.testing.assert_allclose(found, expected, atol=1e-5)  # 8 steps of numbers below 1


@pytest.mark.slow
def test_signals_in_notebook_units_are_those_of_the_gradients():
    """A batch of one: with the decay, of the bias too."""
    problem, x, y = make_problem(Config(hidden=(3,))), *(a[:1] for a in few_images().test)
    rule = notebook.kolen_pollack(problem.model, ll.squared_error, optimizer=optax.sgd(0.1), decay=0.3)

    @jax.jit
    def both(key):
        params = problem.model.init(key)
        state = rule.init(key, params, x)
        deltas, rest = rule.signals(key, params, state, x, y)  # type: ignore[misc]
        pulled = ll.tapped(problem.model).pull_back(params, x, deltas)
        return jax.tree.map(jnp.add, pulled, rest), rule.value_and_grad(key, params, state, x, y)[1]

    assert_near(*both(jax.random.key(0)))
