"""Plasticity transfer from the command line: what it writes and refuses, and that a kill loses nothing."""

import json

import numpy as np
import pytest
import xarray as xr

from experiments import harness, load_params
from experiments.plasticity_transfer import report
from experiments.plasticity_transfer.config import Config
from experiments.plasticity_transfer.models import MODELS
from experiments.plasticity_transfer.report import LABELS
from tests.command_line import call, kill_at_checkpoint, run
from tests.diverged import check_report
from tests.finished import check_names

# Nobody reaches an accuracy of 1, so that every seed is repeated.
NAME = "plasticity_transfer"
SMALL = [
    *("--width", "12", "--cap", "6", "--features", "4", "--seeds", "2", "--subseeds", "2", "--attempts", "2"),
    *("--rule-epochs", "2", "--evaluations", "3", "--least-accuracy", "1.0"),
    *("--points", "300", "100", "--batch-size", "50"),
]
TWO = ["--models", "pre_post_l2", "gradient_descent_l2"]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """Results of one model, killed in its second attempt."""
    out = tmp_path_factory.mktemp("run") / "killed"
    one = [*SMALL, "--models", TWO[1], "--out", out]
    kill_at_checkpoint(out / "checkpoints" / TWO[1] / "upstream_1", NAME, *one)
    assert not (out / "results.nc").exists()
    code, _, errors = run(NAME, *one, "--resume", drawn=False)
    assert code == 0, errors
    return harness.read_dataset(out / "results.nc")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run of two models, its folder and what it printed."""
    out = tmp_path_factory.mktemp("run") / "whole"
    code, printed, errors = run(NAME, *SMALL, *TWO, "--out", out)
    assert code == 0, errors
    return out, printed, errors


@pytest.mark.slow
def test_killed_run_goes_on_to_the_same_results(resumed, finished):
    expected = harness.read_dataset(finished[0] / "results.nc").sel(model=TWO[1:2])
    assert json.loads(resumed.attrs["config"]) == {
        **json.loads(expected.attrs["config"]), "models": TWO[1:2],
    }  # fmt: skip
    xr.testing.assert_identical(resumed.assign_attrs(expected.attrs), expected)


def test_folder_holds_everything(finished):
    out, printed, errors = finished
    figures = {"learning_curves.png", "comparison.png", "tables.png"}
    assert {p.name for p in out.iterdir()} == {
        "config.json", "results.nc", "summary.json", "models", "params", *figures,
    }  # fmt: skip
    assert all((out / name).read_bytes()[:4] == b"\x89PNG" for name in figures)
    assert "PrePost L2" in printed and "gradient descent L2" in printed and "down, balanced" in printed
    assert "2 of 2 seeds once more" in errors
    check_names(out)
    trained = load_params(out, model="pre_post_l2")
    assert trained["learner"][1][0]["w"].shape[:2] == (2, 2)  # seeds, sub-seeds
    table = harness.read_dataset(out / "results.nc").output_table_pre_post_l2.sel(selection="all")
    np.testing.assert_array_equal(trained["tables"][0]["output"], table)
    assert "12/12" in errors  # 2 x (2 rule epochs + 3 evaluations), and 2 rule epochs once more


def test_results_have_named_axes(finished):
    out, _, _ = finished
    results = harness.read_dataset(out / "results.nc")
    assert list(results.model.values) == TWO[1:]
    assert results.downstream_test_accuracy.dims == ("model", "selection", "seed", "subseed", "evaluation")
    assert results.downstream_test_accuracy.shape == (2, 2, 2, 2, 3)
    table = results.output_table_pre_post_l2
    assert table.dims[:2] == ("selection", "seed") and table.shape == (2, 2, 2, 2)
    plastic, descent = results.sel(model=TWO[1]), results.sel(model=TWO[2])
    assert np.isfinite(plastic.upstream_test_accuracy).all()
    assert np.isfinite(plastic.downstream_test_accuracy).all()
    assert np.isnan(descent.upstream_test_accuracy).all()
    assert np.isfinite(descent.downstream_test_accuracy).all()
    assert plastic.samples.values.tolist() == [1333, 2666, 3999]
    # Every seed was run twice; the second attempt is another problem and another network.
    assert (plastic.attempts == 2).all() and (descent.attempts == 1).all()
    assert not np.array_equal(table.sel(selection="all"), table.sel(selection="repeated"))
    assert np.array_equal(
        descent.downstream_test_loss.sel(selection="all"),
        descent.downstream_test_loss.sel(selection="repeated"),
    )
    # Members differ from each other.
    assert len(np.unique(plastic.downstream_test_loss.isel(evaluation=-1))) == 8


def test_summary_is_of_the_results(finished):
    out, _, _ = finished
    results = harness.read_dataset(out / "results.nc")
    rows = json.loads((out / "summary.json").read_text())["rows"]
    for suffix, selection in {"": "all", "_repeated": "repeated"}.items():
        (row,) = (
            r
            for r in rows
            if (r["model"], r["metric"]) == ("pre_post_l2", f"downstream_test_accuracy{suffix}")
        )
        one = results.sel(model="pre_post_l2", selection=selection).isel(evaluation=-1)
        values = one.downstream_test_accuracy.mean("subseed").values
        assert row["mean"] == pytest.approx(values.mean(), rel=1e-6) and row["n"] == 2


def test_a_preset_needs_as_many_images_as_it_says(tmp_path):
    code, _, errors = call(NAME, "--preset", "seed", "--data", "sample", "--out", tmp_path / "out")
    assert code == 2 and "--data: expected at least 60000 images" in errors


def test_a_report_tells_what_is_finite_and_no_more(finished):
    rows = check_report(report, harness.read_dataset(finished[0] / "results.nc"))
    assert {row["metric"] for row in rows if row["mean"] is not None} == set()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": 0}, "--seeds: expected at least 1, got 0"),
        ({"rule_epochs": 0}, "--rule-epochs: expected at least 1, got 0"),
        ({"cap": 101}, "--width: expected at least the cap of 101, got 100"),
        ({"points": (50, 10)}, "--points: expected at least a batch of 100"),
        ({"learning_rate": 0.0}, "--learning-rate: expected a finite number > 0, got 0.0"),
        ({"edge_probability": 1.5}, "--edge-probability: expected a number in 0..1, got 1.5"),
        ({"least_accuracy": -0.1}, "--least-accuracy: expected"),
        ({"models": ()}, "--models: expected"),
        ({"models": ("rnn", "rnn")}, "--models: expected"),
        ({"preset": "seed"}, "--data: expected a source of the whole MNIST with --preset seed"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Config(**arguments)


def test_every_model_is_the_default_and_has_a_label():
    assert Config().models == tuple(MODELS) == tuple(LABELS)
