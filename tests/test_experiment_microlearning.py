"""The main job from the command line: what it writes, what it refuses, and its forms by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr

import lax_learning as ll
from experiments import compare, harness, load_params, plot, reporting
from experiments.microlearning import measures, notebook, report
from experiments.microlearning.__main__ import choose_test_images, find_rate, load, make_setting
from experiments.microlearning.__main__ import run as run_experiment
from experiments.microlearning.config import Config, NetworkName
from experiments.microlearning.networks import make_problem, seen_by
from experiments.microlearning.rules import make_rule
from tests.command_line import call_main, run
from tests.compare import assert_close, assert_same
from tests.finished import check_diverged, check_folder, row_of

SMALL = [
    *("microlearning", "--hidden", "6", "--seeds", "2", "--batch-size", "500", "--epochs", "6"),
    *("--snr-images", "10", "--draws", "4", "--test-images", "50"),
]
RULE = "node_perturbation"
pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")
METRICS = (
    "test_accuracy", "train_loss", "snr_tutorial", "snr", "cosine", "angle_degrees", "relative_bias",
    "relative_variance", "seconds_per_update",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run of one rule, its folder and what it printed."""
    out = tmp_path_factory.mktemp("run") / "whole"
    code, printed, errors = run(*SMALL, "--rules", RULE, "--out", out, drawn=False)
    assert code == 0, errors
    return out, printed, errors


@pytest.fixture(scope="module")
def results(finished):
    return harness.read_dataset(finished[0] / "results.nc")


@pytest.mark.slow
def test_run_stopped_in_its_second_rule_goes_on_to_the_same_results(results, tmp_path):
    """Another rule beside it changes nothing either."""
    arguments = (*SMALL, "--rules", "backprop", RULE, "--out", tmp_path)
    assert run(*arguments, interrupted_in=tmp_path / "checkpoints" / RULE)[0] == 130
    assert (tmp_path / "rules" / "backprop.nc").exists() and not (tmp_path / "results.nc").exists()
    assert run(*arguments, "--resume", drawn=False)[0] == 0
    both = harness.read_dataset(tmp_path / "results.nc").drop_vars("seconds_per_update")
    assert list(both.rule.values) == ["backprop", RULE]
    same, expected = both.sel(rule=[RULE]), results.drop_vars("seconds_per_update")
    xr.testing.assert_identical(same.assign_attrs(expected.attrs), expected)


@pytest.mark.slow
def test_folder_holds_everything(finished):
    out, printed, errors = finished
    figures = ("losses", "accuracy", "snr", "cosine", "bias_variance")
    check_folder(out, parts=("rules", "params"), figures=figures)
    assert "node perturbation" in printed and "accuracy" in printed
    assert "6/6" in errors  # the progress bar, in epochs


@pytest.mark.slow
def test_trained_weights_are_those_of_the_results(finished, results):
    params = load_params(finished[0], rule=RULE)
    config = Config(hidden=(6,), seeds=2, batch_size=500, test_images=50)
    data, keys = load(config), make_setting("backprop", config, few_images()).keys["test"]
    assert params[0]["w"].shape == (2, 784, 6)
    accuracies = results.test_accuracy.sel(rule=RULE).isel(evaluation=-1)
    for i, accuracy in enumerate(accuracies.values):
        x, y = choose_test_images(keys[i], data, 50).test
        output = make_problem(config).model.apply(jax.tree.map(lambda w, i=i: w[i], params), x)
        assert ll.accuracy(output, y) == pytest.approx(accuracy)
    with pytest.raises(ValueError, match=r"^rule: expected one of node_pert.* got 'x'"):
        load_params(finished[0], rule="x")


@pytest.mark.slow
def test_two_runs_side_by_side(finished, tmp_path):
    figure = tmp_path / "both.pdf"
    code, printed, errors = call_main(compare.main, finished[0], finished[0], "--figure", figure)
    assert code == 0 and figure.read_bytes()[:4] == b"%PDF", errors
    assert "The configurations are the same." in printed
    (line,) = (line for line in printed.splitlines() if line.startswith(f"| {RULE}: test_accuracy "))
    _, _, a, b, difference, overlap, _ = (cell.strip() for cell in line.split("|"))
    assert a == b and float(difference) == 0 and overlap == "yes"
    assert compare.differing({"x": 1, "y": 2}, {"x": 1, "z": 3}) == [["y", "2", "None"], ["z", "None", "3"]]
    assert compare.overlap(({"ci95": [0, 1]}, {"ci95": [2, 3]})) == "no"
    assert compare.overlap(({"ci95": [None, None]}, None)) == ""


@pytest.mark.slow
def test_plot_and_compare_refuse_what_is_no_finished_run(finished, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for main, folders in ((plot.main, [tmp_path]), (compare.main, [finished[0], tmp_path])):
        code, _, errors = call_main(main, *folders)
        assert code == 2 and "FOLDER: expected the folder of a finished run" in errors
        assert str(tmp_path) in errors and "--resume" in errors and "Traceback" not in errors
        code, printed, _ = call_main(main, "--help")
        assert (code == 0 and "results.nc" in printed) or "finished runs" in printed


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


def test_more_test_images_than_there_are_are_refused():
    with pytest.raises(
        ValueError, match=r"^--test-images: expected at most the 500 test images of .* got 501"
    ):
        load(Config(test_images=501))
    load(Config(test_images=500))


def test_bad_rules_of_one_s_own_are_refused():
    for path, pattern in {
        "mine": "any of backprop, .* or MODULE:FUNCTION, got mine",
        **{path: f"MODULE:FUNCTION, got {path}" for path in ("no_module:rule", "json:no_rule", "json:")},
    }.items():
        with pytest.raises(ValueError, match=f"^--rules: expected {pattern}"):
            Config(rules=(path,))
    with pytest.raises(ValueError, match=r"^--rules: expected builtins:print.* return a Rule, got NoneType"):
        make_rule("builtins:print", Config(), optax.sgd(1.0))


@pytest.mark.slow
def test_summary_is_of_the_results(finished, results):
    out, _, _ = finished
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary) == {"experiment", "versions", "config", "null", "rows"}
    assert summary["experiment"] == "microlearning" and summary["config"]["seeds"] == 2
    assert {"jax", "numpy", "lax_learning", "python"} <= set(summary["versions"])
    assert summary["config"] == json.loads((out / "config.json").read_text())
    for metric in METRICS:
        row = row_of(out, rule=RULE, metric=metric)
        assert set(row) == {"rule", "metric", "mean", "ci95", "n", "seeds"}
        low, high = row["ci95"]
        assert low <= row["mean"] <= high and row["n"] == (6 if metric == "seconds_per_update" else 2)
    # The mean over seeds, the interval Student's t with one degree.
    row = row_of(out, rule=RULE, metric="cosine")
    values = results.cosine.sel(rule=RULE, layer="layer 1").isel(evaluation=-1).values
    assert row["mean"] == pytest.approx(values.mean(), rel=1e-6)
    half = 12.706 * abs(values[0] - values[1]) / 2
    assert row["ci95"][1] - row["mean"] == pytest.approx(half, rel=1e-3)


@pytest.mark.slow
def test_results_have_named_axes(results):
    assert results.loss.dims == ("rule", "seed", "step") and results.loss.shape == (1, 2, 48)
    assert results.cosine.dims == ("rule", "seed", "evaluation", "layer")
    assert list(results.rule.values) == [RULE]
    assert list(results.layer.values) == ["layer 1", "layer 2", "total"]
    assert all(np.isfinite(results[name]).all() for name in results.data_vars)


@pytest.mark.slow
def test_folder_of_another_configuration_is_refused(finished):
    out, _, _ = finished
    before = (out / "summary.json").read_bytes()
    code, _, errors = run(*SMALL, "--rules", RULE, "--sigma", "0.5", "--out", out, "--resume")
    assert code == 2 and "another configuration" in errors and "sigma: 0.01 before, 0.5 now" in errors
    assert (out / "summary.json").read_bytes() == before


@pytest.mark.slow
def test_a_report_tells_what_is_finite_and_no_more(results):
    assert check_diverged(report, results) == {"seconds_per_update"}


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
