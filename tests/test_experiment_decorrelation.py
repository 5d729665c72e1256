"""Decorrelation of inputs: its runs, keys, updates and readings by hand."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr

import lax_learning as ll
from experiments.decorrelation.config import Config
from experiments.decorrelation.report import first_reaching, runs_in
from experiments.decorrelation.runs import RATES, Form, Numbers, on_pixels, runs_of
from experiments.decorrelation.training import measure, start_of, train_of, training
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
    assert runs["pure"].numbers[0].of_dynamics == {"eta": 1e-3, "kappa": 0.0}
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
        right = jax.nn.one_hot(jnp.argmax(network.apply(start.train.params, x), axis=1), 10)
        sets = (ll.data.Dataset(x, y) for y in (right, jnp.roll(right, 1, axis=1), right))
        data = ll.data.Splits(*sets)
        after, _ = training(form, 6, 2).step(start, 0, data)
        keys = [
            jax.random.key_data(each) for each in (*seen, start.train.update_key, start.train.batches.key)
        ]
        return keys, measure(form, start, form.steps + 1, data), start.train.params, after.train.params

    keys, found, before, after = run(jax.random.key(3))
    assert len(np.unique(keys, axis=0)) == len(keys) == 6
    assert (found["test_accuracy"], found["validation_accuracy"]) == (1, 0)
    assert_same(after, before)


def test_an_update_is_that_of_the_library_on_standardised_images():
    """Kolen-Pollack's feedback moves as the weights, and R is learned."""
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.random((9, 784), np.float32)), jnp.eye(9, 10)
    plain, descent = on_pixels(ll.convnet((28, 28, 1), (2,), (12,), kernel=3, stride=7)), optax.sgd(0.01)
    form = Form(plain, "kolen_pollack", ll.decorrelation.dynamics, optax.sgd, 6, 3, 2)

    def rule(model):
        return ll.kolen_pollack(model, ll.softmax_cross_entropy, optimizer=descent)

    def splits(x, y):
        return ll.data.Splits(*[ll.data.Dataset(x, y)] * 3)

    @jax.jit
    def both(key):
        start = start_of(form, 9, 2, key, Numbers(0.01, {"eta": 0.1}, 0.1, 0.3))
        train, rows = train_of(form, 2, start, splits(x, y))
        white = ll.decorrelation.rule(rule, plain, ll.decorrelation.dynamics(0.1))
        expected = ll.make_train(white, descent, init=plain.init, num_updates=6, batch_size=2)
        data = splits((x[start.images] - 0.1) / 0.3, jnp.eye(9, 12)[start.images])
        return [of.update(to, start.train, 0) for of, to in ((train, rows), (expected, data))]

    assert_near(*both(jax.random.key(3)))


def test_reading():
    validation = np.full((3, 2, 4), np.nan)
    validation[:2, :, :3] = [[[0, 0, 0.5]], [[0, 0, 0.7]]]
    variables = {
        "updates": ("step", [0.0, 10, 20, np.nan]),
        "seconds": ("step", [9.0, 1.0, 3.0, np.nan]),
        "learning_rate": ("rate", [0.1, 0.2, np.nan]),
        "validation_accuracy": (("rate", "seed", "step"), validation),
        "test_accuracy": (("seed", "step"), [[0.1, 0.5, 0.6, np.nan], [0.1, 0.3, 0.8, np.nan]]),
        "correlation": ("layer", [1.0, np.nan]),
        "num_layers": ((), 1),
    }
    results = xr.Dataset(variables).expand_dims(run=["a"]).assign_coords(study=("run", ["gain"]))
    assert runs_in(results, "choices") == {}
    best = runs_in(results, "gain")["a"]
    assert float(best.learning_rate) == 0.2 and best.sizes == {"seed": 2, "step": 3, "layer": 1}
    assert best.seconds_per_update == pytest.approx(0.2)
    np.testing.assert_allclose(best.elapsed, [0, 2, 4])
    assert first_reaching(best, "updates", 0.4) == 10 and np.isnan(first_reaching(best, "elapsed", 0.71))
