"""The benchmark of rules and that of published numbers: what decides, what is kept, what is told."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import benchmarks.published.__main__ as published
import benchmarks.rules.__main__ as rules
import lax_learning as ll
from benchmarks.published.entries import ENTRIES, _drops, make_rule
from benchmarks.published.report import theirs
from benchmarks.rules import report, runs
from benchmarks.rules.config import Config
from benchmarks.rules.problems import DATA, PROBLEMS
from experiments import harness
from tests.command_line import call_main
from tests.compare import slow_but

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

PROBLEM = "half_space-batch_norm"
OPTIONS = (
    f"--problems {PROBLEM} --rules backprop feedback_alignment pepita --seeds 2 --tuning-seeds 2 --updates 4 "
    "--evaluations 2 --rates 0.01 0.1 1e30 --batch-size 8 --batches 3 --seconds 1e-3"
).split()


@pytest.fixture(autouse=True)
def few_examples(monkeypatch):
    half_space = jax.jit(lambda key: ll.data.half_space(key, 16, sizes=(40, 20, 20)))
    monkeypatch.setattr(harness, "use_all_cores", lambda **_: None)  # JAX has run here already
    monkeypatch.setitem(DATA, "half_space", DATA["half_space"]._replace(load=lambda key, _: half_space(key)))


@pytest.mark.slow
def test_the_command_compares_and_refuses_rules(tmp_path):
    code, printed, err = call_main(rules.main, *OPTIONS, "--out", tmp_path)
    assert code == 0, err
    assert "\nRefused: pepita: apply: expected a model in which each output depends only on" in printed
    assert printed.count("\n| feedback alignment") == 1 and "\n| pepita" not in printed
    assert (tmp_path / "table.md").read_text().split("\n\n", 1)[1].strip() in printed
    drawn = {path.stem for path in tmp_path.glob("*.png")}
    assert drawn == {f"{PROBLEM}_{name}" for name in ("curves", "cosine", "snr")}
    results = harness.read_dataset(tmp_path / "results.nc")
    rows = json.loads((tmp_path / "summary.json").read_text())["rows"]
    by_metric = {(row["rule"], row["metric"]): row for row in rows}
    assert [rule for rule, metric in by_metric if metric == "refused"] == ["pepita"]
    row = by_metric["feedback_alignment", "equal updates"]
    last = results.test_accuracy.sel(part=f"{PROBLEM}-feedback_alignment").values[:, -1]
    assert row["mean"] == pytest.approx(last.mean()) and row["n"] == 2
    assert by_metric["backprop", "cosine end"]["mean"] == pytest.approx(1, abs=1e-6)
    assert by_metric["feedback_alignment", "cosine start"]["mean"] < 0.99
    assert {str(layer) for layer in results.layer.values} == {"embedding", "hidden", "readout", "total"}


def test_the_step_is_chosen_without_test_data():
    problem = "half_space-dense"
    config = Config(problems=(problem,), updates=4, evaluations=2, batch_size=8, batches=3)
    contest, data = runs.Contest("backprop", PROBLEMS[problem], config), runs.load(config)["half_space"]
    other_test = data._replace(test=ll.data.Dataset(*(1 - np.asarray(leaf) for leaf in data.test)))
    run, member = jax.jit(contest.run), (jax.random.key(0), jnp.float32(0.1))
    sets = data, other_test, data._replace(validation=data.test)
    first, of_test, of_validation = (run(member, each)[0] for each in sets)
    assert np.array_equal(first["validation"], of_test["validation"])
    assert not np.array_equal(first["validation"], of_validation["validation"])
    assert not np.array_equal(first["test"], of_test["test"])


def test_the_best_rate_never_diverges():
    nan = np.nan
    assert runs.best(np.array([[0.5, 0.6], [0.9, nan], [0.7, 0.5], [nan, nan]])) == 2


def test_equal_seconds_are_those_of_backprop():
    """Half as many updates at twice the time, 0.45 on the way from 0.1 to 0.8; no more than were run."""
    accuracy = ("seed", "step"), [[0.1, 0.8]]
    for ratio, expected in ((2.0, 0.45), (0.5, 0.8)):
        part = xr.Dataset({"test_accuracy": accuracy, "relative_seconds": ratio}, {"step": [0, 10]})
        assert report.at_equal_seconds(part) == pytest.approx(expected)


def test_every_model_takes_every_data_set():
    for problem in PROBLEMS.values():
        data, model = DATA[problem.data], problem.model
        params = jax.eval_shape(model.init, jax.random.key(0))
        x = jax.ShapeDtypeStruct((3, int(np.prod(data.image))), "float32")
        assert jax.eval_shape(model.apply, params, x).shape == (3, data.classes)


@pytest.mark.slow
def test_published_rows_are_trained_and_told(tmp_path):
    row = "akrout-kolen_pollack"
    options = "--rows", row, "--epochs", 1, "--seeds", 2, "--out", tmp_path
    code, printed, err = call_main(published.main, *options)
    assert code == 0, err
    (found,) = json.loads((tmp_path / "summary.json").read_text())["rows"]
    assert (found["row"], found["epoch"], found["theirs"]) == (row, 1, "11.1") and 0 < found["mean"] < 91
    assert (tmp_path / "errors.png").stat().st_size > 1000
    assert ENTRIES[row].link in printed and f"| {11.1:g} |" in printed.replace("  ", "")


def test_numbers_stand_beside_their_own_epoch():
    for row, epoch, last, expected in (
        ("akrout-backprop", 3, 10, "9.42"),
        ("akrout-backprop", 2, 2, "5.88 (after 10)"),
        ("akrout-backprop", 2, 10, "-"),
        ("ren-backprop", 20, 20, "2.66 (at the end)"),
        ("biotorch-kolen_pollack", 20, 20, "not published"),
    ):
        assert theirs(row, epoch, last) == expected


@pytest.mark.parametrize("name", slow_but(("akrout-kolen_pollack", "pepita-pepita"), ENTRIES))
def test_every_published_row_can_be_trained(name):
    recipe = ENTRIES[name].recipe
    model, optimizer = recipe.model, recipe.optimizer(2, 2)

    def update(key, images, y):
        params, x = model.init(key), recipe.see(images)
        rule = make_rule(ENTRIES[name], model, optimizer)
        loss, grads, _ = rule.value_and_grad(key, params, rule.init(key, params, x), x, y)
        return loss, optimizer.update(grads, optimizer.init(params), params)[0], params

    shapes = jax.ShapeDtypeStruct((4, 784), "float32"), jax.ShapeDtypeStruct((4, 10), "float32")
    loss, updates, params = jax.eval_shape(update, jax.random.key(0), *shapes)
    assert loss.shape == () and jax.tree.structure(updates) == jax.tree.structure(params)


def test_learning_rates_of_published_rows():
    """Rates drop at shares of all updates; biases of Akrout et al. step by the size of a batch less."""
    rate: Any = _drops(0.1, 20, 10, (0.6, 0.9))
    np.testing.assert_allclose([rate(step) for step in (119, 121, 181)], [0.1, 0.01, 0.001], rtol=1e-6)
    optimizer = ENTRIES["akrout-backprop"].recipe.optimizer(1, 1)
    params = ({"w": jnp.ones((2, 2)), "b": jnp.ones(2)},)
    updates: Any = optimizer.update(params, optimizer.init(params), params)[0]
    np.testing.assert_allclose(updates[0]["w"], -0.2, rtol=1e-6)
    np.testing.assert_allclose(updates[0]["b"], -0.2 / 128, rtol=1e-6)
