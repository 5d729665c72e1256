"""The benchmark of rules and that of published numbers: what decides, what is kept, what is told."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import benchmarks.published.__main__ as published
import benchmarks.rules.__main__ as rules
import lax_learning as ll
from benchmarks.published.entries import ENTRIES, make_rule
from benchmarks.published.report import theirs
from benchmarks.rules import report, runs
from benchmarks.rules.config import Config
from benchmarks.rules.problems import DATA, PROBLEMS
from experiments import harness
from tests.command_line import call_main
from tests.compare import slow_but

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

PROBLEM = "half_space-batch_norm"
SMALL = {
    "problems": (PROBLEM,), "rules": ("backprop", "feedback_alignment", "pepita"), "seeds": 2,
    "tuning_seeds": 2, "updates": 4, "evaluations": 2, "rates": (0.01, 0.1, 1e30), "batch_size": 8,
    "batches": 3, "seconds": 1e-3,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def few_examples() -> Iterator[pytest.MonkeyPatch]:
    def load(key: Any, source: str) -> ll.data.Splits:
        return ll.data.half_space(key, 16, sizes=(40, 20, 20))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "use_all_cores", lambda **_: None)  # JAX has run here already
        patch.setitem(DATA, "half_space", DATA["half_space"]._replace(load=load))
        yield patch


def options(**more: Any) -> list[str]:
    """As they are typed."""
    typed = []
    for name, value in {**SMALL, **more}.items():
        values = value if isinstance(value, tuple) else (value,)
        typed += [f"--{name.replace('_', '-')}", *map(str, values)]
    return typed


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of the command that was stopped after its first part, and resumed."""
    out = tmp_path_factory.mktemp("rules") / "run"
    with pytest.MonkeyPatch.context() as patch:
        run_part, done = runs.run_part, []

        def stopped(name: str, *args: Any) -> xr.Dataset:
            if done:
                raise KeyboardInterrupt
            done.append(name)
            return run_part(name, *args)

        patch.setattr(rules, "run_part", stopped)
        code, _, err = call_main(rules.main, *options(), "--out", out)
        assert code == harness.EXIT_INTERRUPTED, err
        assert len(list((out / "parts").iterdir())) == 1

        def rest(name: str, *args: Any) -> xr.Dataset:
            assert name not in done
            return run_part(name, *args)

        patch.setattr(rules, "run_part", rest)
        code, printed, err = call_main(rules.main, "--resume", "--out", out)
        assert code == 0, err
    return out, printed


@pytest.mark.slow
def test_a_resumed_run_has_the_results_of_one_go(finished: tuple[Path, str], tmp_path: Path) -> None:
    code, _, err = call_main(rules.main, *options(rules=("backprop",)), "--out", tmp_path / "again")
    assert code == 0, err
    again = harness.read_dataset(tmp_path / "again" / "results.nc").isel(part=0)
    first = harness.read_dataset(finished[0] / "results.nc").isel(part=0)
    for name in ("tuning_accuracy", "learning_rate", "test_accuracy", "cosine", "snr"):
        xr.testing.assert_identical(again[name].drop_attrs(), first[name].drop_attrs())


@pytest.mark.slow
def test_refused_rules_are_listed_with_their_message(finished: tuple[Path, str]) -> None:
    out, printed = finished
    assert "\nRefused: pepita: apply: expected a model in which each output depends only on" in printed
    found = json.loads((out / "summary.json").read_text())["rows"]
    assert [row["rule"] for row in found if row["metric"] == "refused"] == ["pepita"]
    assert printed.count("\n| feedback alignment") == 1 and "\n| pepita" not in printed


@pytest.mark.slow
def test_table_and_figures_hold_what_was_measured(finished: tuple[Path, str]) -> None:
    out, printed = finished
    assert (out / "table.md").read_text().split("\n\n", 1)[1].strip() in printed
    drawn = {path.stem for path in out.glob("*.png")}
    assert drawn == {f"{PROBLEM}_{name}" for name in ("curves", "cosine", "snr")}
    results = harness.read_dataset(out / "results.nc")
    by_metric = {
        (row["rule"], row["metric"]): row for row in json.loads((out / "summary.json").read_text())["rows"]
    }
    row = by_metric["feedback_alignment", "equal updates"]
    last = results.test_accuracy.sel(part=f"{PROBLEM}-feedback_alignment").values[:, -1]
    assert row["mean"] == pytest.approx(last.mean()) and row["n"] == 2
    assert by_metric["backprop", "cosine end"]["mean"] == pytest.approx(1, abs=1e-6)
    assert by_metric["feedback_alignment", "cosine start"]["mean"] < 0.99
    assert {str(layer) for layer in results.layer.values} == {"embedding", "hidden", "readout", "total"}


def test_the_step_is_chosen_without_test_data() -> None:
    config = Config(**{**SMALL, "rules": ("backprop",)})
    contest = runs.Contest("backprop", PROBLEMS[PROBLEM], config)
    data = runs.load(config)["half_space"]
    with_other_test = data._replace(test=ll.data.Dataset(-data.test.x, 1 - data.test.y))
    with_other_validation = data._replace(validation=data.test)
    run = jax.jit(contest.run)
    member = (jax.random.key(0), jnp.float32(0.1))
    found = [run(member, each).accuracies for each in (data, with_other_test, with_other_validation)]
    same, other = (np.array_equal(found[0]["validation"], each["validation"]) for each in found[1:])
    assert same and not other
    assert not np.array_equal(found[0]["test"], found[1]["test"])


def test_the_best_rate_never_diverges() -> None:
    nan = np.nan
    assert runs.best(np.array([[0.5, 0.6], [0.9, nan], [0.7, 0.5], [nan, nan]])) == 2
    assert runs.best(np.array([[0.5, 0.5], [0.5, 0.5]])) == 0


@pytest.mark.parametrize(("ratio", "expected"), [(2.0, 0.45), (1.0, 0.8), (0.5, 0.8)])
def test_equal_seconds_are_those_of_backprop(ratio: float, expected: float) -> None:
    """Half as many updates at twice the time, 0.45 on the way from 0.1 to 0.8; no more than were run."""
    part = xr.Dataset(
        {"test_accuracy": (("seed", "step"), [[0.1, 0.8]]), "relative_seconds": ratio}, {"step": [0, 10]}
    )
    assert report.at_equal_seconds(part) == pytest.approx(expected)


def test_every_model_takes_every_data_set() -> None:
    for problem in PROBLEMS.values():
        data, model = DATA[problem.data], problem.make_model()
        params = jax.eval_shape(model.init, jax.random.key(0))
        x = jax.ShapeDtypeStruct((3, int(np.prod(data.image))), "float32")
        assert jax.eval_shape(model.apply, params, x).shape == (3, data.classes)


# --- published numbers


@pytest.mark.slow
def test_published_rows_are_trained_and_told(tmp_path: Path) -> None:
    row = "akrout-kolen_pollack"
    small = ("--rows", row, "--epochs", 1, "--seeds", 2, "--out", tmp_path)
    code, printed, err = call_main(published.main, *small)
    assert code == 0, err
    (found,) = json.loads((tmp_path / "summary.json").read_text())["rows"]
    assert (found["row"], found["epoch"], found["theirs"]) == (row, 1, "11.1") and 0 < found["mean"] < 91
    assert (tmp_path / "errors.png").stat().st_size > 1000
    assert ENTRIES[row].link in printed and f"| {11.1:g} |" in printed.replace("  ", "")


def test_numbers_stand_beside_their_own_epoch() -> None:
    assert theirs("akrout-backprop", 3, 10) == "9.42"
    assert theirs("akrout-backprop", 2, 2) == "5.88 (after 10)"
    assert theirs("akrout-backprop", 2, 10) == "-"
    assert theirs("ren-backprop", 20, 20) == "2.66 (at the end)"
    assert theirs("biotorch-kolen_pollack", 20, 20) == "not published"


@pytest.mark.parametrize("name", slow_but(("akrout-kolen_pollack", "pepita-pepita"), ENTRIES))
def test_every_published_row_can_be_trained(name: str) -> None:
    recipe = ENTRIES[name].recipe
    model, optimizer = recipe.model(), recipe.optimizer(2, 2)

    def update(key: Any, images: Any, y: Any) -> Any:
        params, x = model.init(key), recipe.see(images)
        rule = make_rule(ENTRIES[name], model, optimizer)
        loss, grads, _ = rule.value_and_grad(key, params, rule.init(key, params, x), x, y)
        return loss, optimizer.update(grads, optimizer.init(params), params)[0], params

    shapes = jax.ShapeDtypeStruct((4, 784), "float32"), jax.ShapeDtypeStruct((4, 10), "float32")
    loss, updates, params = jax.eval_shape(update, jax.random.key(0), *shapes)
    assert loss.shape == () and jax.tree.structure(updates) == jax.tree.structure(params)


def test_biases_of_akrout_step_by_the_batch_less() -> None:
    optimizer = ENTRIES["akrout-backprop"].recipe.optimizer(1, 1)
    params = ({"w": jnp.ones((2, 2)), "b": jnp.ones(2)},)
    updates: Any = optimizer.update(params, optimizer.init(params), params)[0]
    np.testing.assert_allclose(updates[0]["w"], -0.2, rtol=1e-6)
    np.testing.assert_allclose(updates[0]["b"], -0.2 / 128, rtol=1e-6)
