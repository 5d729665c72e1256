"""The main job from the command line: what it writes, what it refuses, and that a kill loses nothing."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from experiments import harness, reporting
from experiments.microlearning import report
from experiments.microlearning.__main__ import make_optimizer
from experiments.microlearning.__main__ import run as run_experiment
from experiments.microlearning.config import Config
from experiments.microlearning.networks import make_problem
from experiments.microlearning.rules import RULES
from tests.command_line import call, kill_at_checkpoint, run
from tests.diverged import check_report

NAME = "microlearning"
SMALL = [
    *("--hidden", "6", "--seeds", "2", "--batch-size", "500", "--epochs", "6"),
    *("--snr-images", "10", "--draws", "4", "--test-images", "50"),
]
TWO = ["--rules", "backprop", "node_perturbation"]
METRICS = (
    "test_accuracy", "train_loss", "snr_tutorial", "snr", "cosine", "angle_degrees", "relative_bias",
    "relative_variance", "seconds_per_update",
)  # fmt: skip


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """The folder of a run that was killed in its second rule and went on in another process."""
    out = tmp_path_factory.mktemp("run") / "killed"
    kill_at_checkpoint(out / "checkpoints" / "node_perturbation", NAME, *SMALL, *TWO, "--out", out)
    assert (out / "rules" / "backprop.nc").exists() and not (out / "results.nc").exists()
    code, _, errors = call(NAME, *SMALL, *TWO, "--out", out)
    assert code == 2 and "--resume" in errors
    code, _, errors = run(NAME, *SMALL, *TWO, "--out", out, "--resume", drawn=False)
    assert code == 0, errors
    return out


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run of two rules, its folder and what it printed."""
    out = tmp_path_factory.mktemp("run") / "whole"
    code, printed, errors = run(NAME, *SMALL, *TWO, "--out", out)
    assert code == 0, errors
    return out, printed, errors


def test_killed_run_goes_on_to_the_same_results(resumed, finished):
    same, expected = (harness.read_dataset(out / "results.nc") for out in (resumed, finished[0]))
    xr.testing.assert_identical(
        same.drop_vars("seconds_per_update"), expected.drop_vars("seconds_per_update")
    )


def test_folder_holds_everything(finished):
    out, printed, errors = finished
    names = {"config.json", "results.nc", "summary.json", "rules"}
    figures = {f"{name}.png" for name in ("losses", "accuracy", "snr", "cosine", "bias_variance")}
    assert {path.name for path in out.iterdir()} == names | figures
    assert all((out / name).read_bytes()[:4] == b"\x89PNG" for name in figures)
    assert "backprop" in printed and "node perturbation" in printed and "accuracy" in printed
    assert "12/12" in errors  # the progress bar, in epochs of both rules


def test_summary_has_its_rows(finished):
    out, _, _ = finished
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary) == {"experiment", "versions", "config", "null", "rows"}
    assert summary["experiment"] == "microlearning"
    assert {"jax", "numpy", "lax_learning", "python"} <= set(summary["versions"])
    assert summary["config"]["seeds"] == 2 and summary["config"] == json.loads(
        (out / "config.json").read_text()
    )
    rows = {(row["rule"], row["metric"]): row for row in summary["rows"]}
    for rule in TWO[1:]:
        for metric in METRICS:
            row = rows[rule, metric]
            assert set(row) == {"rule", "metric", "mean", "ci95", "n", "seeds"}
            low, high = row["ci95"]
            assert low <= row["mean"] <= high and row["n"] == (6 if metric == "seconds_per_update" else 2)


def test_results_have_named_axes(finished):
    out, _, _ = finished
    results = harness.read_dataset(out / "results.nc")
    assert results.loss.dims == ("rule", "seed", "step") and results.loss.shape == (2, 2, 48)
    assert results.cosine.dims == ("rule", "seed", "evaluation", "layer")
    assert list(results.rule.values) == TWO[1:]
    assert list(results.layer.values) == ["layer 1", "layer 2", "total"]
    assert all(np.isfinite(results[name]).all() for name in results.data_vars)
    # The summary is of these numbers: the mean over seeds, the interval Student's t with one degree.
    rows = json.loads((out / "summary.json").read_text())["rows"]
    (row,) = (r for r in rows if (r["rule"], r["metric"]) == ("backprop", "cosine"))
    values = results.cosine.sel(rule="backprop", layer="layer 1").isel(evaluation=-1).values
    assert row["mean"] == pytest.approx(values.mean(), rel=1e-6)
    half = 12.706 * abs(values[0] - values[1]) / 2
    assert row["ci95"][1] - row["mean"] == pytest.approx(half, rel=1e-3)


def test_folder_of_another_configuration_is_refused(finished):
    out, _, _ = finished
    before = (out / "summary.json").read_bytes()
    code, _, errors = call(NAME, *SMALL, *TWO, "--sigma", "0.5", "--out", out, "--resume")
    assert code == 2
    assert "another configuration" in errors and "sigma: 0.01 there, 0.5 here" in errors
    assert (out / "summary.json").read_bytes() == before


def test_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(harness.FolderError, match="expected an empty folder"):
        harness.open_folder(tmp_path, {}, resume=True)
    (tmp_path / "thesis.tex").rename(tmp_path / "config.json")
    with pytest.raises(harness.FolderError, match="damaged JSON"):
        harness.open_folder(tmp_path, {}, resume=True)


def test_folder_of_a_run_killed_at_its_start_is_taken(tmp_path):
    (tmp_path / ".config.json.123").write_text("{")
    harness.open_folder(tmp_path, {"seeds": 2}, resume=True)
    assert json.loads((tmp_path / "config.json").read_text()) == {"seeds": 2}


def test_a_report_tells_what_is_finite_and_no_more(finished):
    rows = check_report(report, harness.read_dataset(finished[0] / "results.nc"))
    assert {row["metric"] for row in rows if row["mean"] is not None} == {"seconds_per_update"}


def test_help_names_every_option():
    code, printed, _ = call(NAME, "--help")
    assert code == 0
    for option in Config.__dataclass_fields__:
        assert re.search(rf"--{option.replace('_', '-')}\b", printed)
    assert all(rule in printed for rule in RULES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": 0}, "--seeds: expected at least 1, got 0"),
        ({"draws": 2}, "--draws: expected at least 3, got 2"),
        ({"rules": ()}, "--rules: expected"),
        ({"rules": ("backprop", "backprop")}, "--rules: expected"),
        ({"learning_rate": 0.1}, "--learning-rate: expected none with --scale matched"),
        ({"hidden": (5, 0)}, "--hidden: expected"),
        ({"network": "recurrent", "hidden": ()}, "--hidden: expected at least 1 widths"),
        ({"network": "convolutional", "hidden": (5, 6)}, "--hidden: expected at least 3 widths"),
        ({"drops": (3, 2)}, "--drops: expected epochs in order"),
        ({"drops": (0,)}, "--drops: expected at least 1, got 0"),
        ({"momentum": 1.0}, r"--momentum: expected a number in \[0, 1\)"),
        ({"weight_decay": -1.0}, "--weight-decay: expected a finite number >= 0"),
        ({"sigma": 0.0}, "--sigma: expected"),
        ({"scale": "gradient", "learning_rate": -1.0}, "--learning-rate: expected"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Config(**arguments)


def test_every_rule_is_the_default():
    assert Config().rules == tuple(RULES)


def test_intervals_by_hand():
    mean, low, high, n = reporting.interval(np.array([1.0, 2.0, 3.0, np.nan]))
    # t(0.975, 2) = 4.302653; standard error 1 / sqrt(3)
    assert (mean, n) == (2.0, 3)
    assert high - mean == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6) == mean - low
    assert np.isnan(reporting.interval(np.array([1.0]))[1])


def test_half_written_files_are_never_in_place(tmp_path):
    path = tmp_path / "file"
    harness.write_json(path, [1])

    def fail(beside: Path) -> None:
        beside.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harness.write_whole(path, fail)
    assert json.loads(path.read_text()) == [1]


def test_another_network_and_other_steps(tmp_path):
    config = Config(
        rules=("feedback_alignment",), network="recurrent", hidden=(2,), seeds=1, epochs=2, batch_size=1000,
        momentum=0.9, weight_decay=0.1, drops=(1,), scale="gradient", learning_rate=0.01, snr_images=3,
        draws=3, test_images=20, out=tmp_path / "run",
    )  # fmt: skip
    results = run_experiment(config)
    assert results.sizes["layer"] == 3
    assert all(np.isfinite(results[name]).all() for name in results.data_vars)
    assert json.loads(results.attrs["config"])["hidden"] == [2]


def test_images_as_networks_see_them():
    images = np.random.default_rng(0).random((2, 784), np.float32)
    for network in ("dense", "convolutional", "recurrent"):
        problem = make_problem(Config(network=network))
        seen = np.asarray(problem.see(jnp.asarray(images)))
        assert seen.shape == (2, *problem.network.input_shape)
        assert len(problem.network.layers) == {"dense": 2, "convolutional": 5, "recurrent": 2}[network]
        if network == "recurrent":
            np.testing.assert_allclose(seen[1, 3], (images[1, 84:112] - 0.1307) / 0.3081, rtol=1e-5)


def test_optimizer_by_hand():
    # velocity <- 0.9 velocity + g + decay w, w <- w - rate velocity, the rate a tenth from the drop on
    config = Config(
        scale="gradient", learning_rate=0.5, momentum=0.9, weight_decay=0.1, drops=(1,), hidden=(2,)
    )
    optimizer = make_optimizer(config, 0.5, updates_per_epoch=2)
    params = ({"w": np.float32(3.0), "feedback": np.float32(3.0)},)
    state, w, velocity = optimizer.init(params), 3.0, 0.0
    for rate in (0.5, 0.5, 0.05):
        updates, state = optimizer.update(
            ({"w": np.float32(1.0), "feedback": np.float32(0.0)},), state, params
        )
        params = jax.tree.map(lambda p, u: p + u, params, updates)
        velocity = 0.9 * velocity + 1 + 0.1 * w
        w -= rate * velocity
        assert params[0]["w"] == pytest.approx(w, rel=1e-5) and params[0]["feedback"] == 3.0
