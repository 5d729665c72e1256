"""Plasticity transfer from the command line: what it writes, and that a stop loses nothing."""

import json
from importlib import import_module
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from experiments import harness, load_params
from experiments.plasticity_transfer import report, stages
from experiments.plasticity_transfer.config import Config
from experiments.plasticity_transfer.models import MODELS
from experiments.plasticity_transfer.report import LABELS
from tests.command_line import run
from tests.finished import check_diverged, check_folder, row_of

# Nobody reaches an accuracy of 1, so that every seed is repeated.
SMALL = [
    *("--width", "12", "--cap", "6", "--features", "4", "--seeds", "2", "--subseeds", "2", "--attempts", "2"),
    *("--rule-epochs", "2", "--evaluations", "3", "--least-accuracy", "1.0"),
    *("--points", "300", "100", "--batch-size", "50"),
]
TWO = ["--models", "pre_post_l2", "gradient_descent_l2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run of two models, its folder and what it printed."""
    out = tmp_path_factory.mktemp("run") / "whole"
    # The search within a cap in fewer and larger steps: the same result, compiled several times faster.
    with patch.object(import_module("lax_learning.plasticity._k_cap"), "_BITS_A_ROUND", 8):
        code, printed, errors = run("plasticity_transfer", *SMALL, *TWO, "--out", out, drawn=False)
    assert code == 0, errors
    return out, printed, errors


@pytest.fixture(scope="module")
def results(finished):
    return harness.read_dataset(finished[0] / "results.nc")


@pytest.mark.slow
def test_run_stopped_in_its_second_attempt_goes_on_to_the_same_results(results, tmp_path):
    """Of one model alone, which changes nothing either."""
    out = tmp_path / "stopped"
    one = [*SMALL, "--models", TWO[1], "--out", out]
    stop = out / "checkpoints" / TWO[1] / "upstream_1"
    assert run("plasticity_transfer", *one, interrupted_in=stop)[0] == 130
    assert not (out / "results.nc").exists()
    assert run("plasticity_transfer", *one, "--resume", drawn=False)[0] == 0
    resumed, expected = harness.read_dataset(out / "results.nc"), results.sel(model=TWO[1:2])
    assert json.loads(resumed.attrs["config"]) == {**json.loads(expected.attrs["config"]), "models": TWO[1:2]}
    xr.testing.assert_identical(resumed.assign_attrs(expected.attrs), expected)


@pytest.mark.slow
def test_folder_holds_everything(finished, results):
    out, printed, errors = finished
    check_folder(out, parts=("models", "params"), figures=("learning_curves", "comparison", "tables"))
    assert "PrePost L2" in printed and "gradient descent L2" in printed and "down, balanced" in printed
    assert "2 of 2 seeds once more" in errors
    assert "12/12" in errors  # 2 x (2 rule epochs + 3 evaluations), and 2 rule epochs once more
    trained = load_params(out, model="pre_post_l2")
    assert trained["learner"][1][0]["w"].shape[:2] == (2, 2)  # seeds, sub-seeds
    table = results.output_table_pre_post_l2.sel(selection="all")
    np.testing.assert_array_equal(trained["tables"][0]["output"], table)


@pytest.mark.slow
def test_results_have_named_axes(results):
    assert list(results.model.values) == TWO[1:]
    assert results.downstream_test_accuracy.dims == ("model", "selection", "seed", "subseed", "evaluation")
    assert results.downstream_test_accuracy.shape == (2, 2, 2, 2, 3)
    table = results.output_table_pre_post_l2
    assert table.dims[:2] == ("selection", "seed") and table.shape == (2, 2, 2, 2)
    plastic, descent = results.sel(model=TWO[1]), results.sel(model=TWO[2])
    assert np.isfinite(plastic.upstream_test_accuracy).all()
    assert np.isfinite(results.downstream_test_accuracy).all()
    assert np.isnan(descent.upstream_test_accuracy).all()
    assert plastic.samples.values.tolist() == [1333, 2666, 3999]
    # Every seed was run twice; the second attempt is another problem and another network.
    assert (plastic.attempts == 2).all() and (descent.attempts == 1).all()
    first, second = (plastic.sel(selection=name) for name in ("all", "repeated"))
    assert (first.upstream_loss != second.upstream_loss).all()
    assert not np.array_equal(table.sel(selection="all"), table.sel(selection="repeated"))
    alone = descent.downstream_test_loss
    assert np.array_equal(alone.sel(selection="all"), alone.sel(selection="repeated"))
    # Members differ from each other.
    assert len(np.unique(plastic.downstream_test_loss.isel(evaluation=-1))) == 8


@pytest.mark.slow
def test_summary_is_of_the_results(finished, results):
    for suffix, selection in {"": "all", "_repeated": "repeated"}.items():
        found = row_of(finished[0], model="pre_post_l2", metric=f"downstream_test_accuracy{suffix}")
        one = results.sel(model="pre_post_l2", selection=selection).isel(evaluation=-1)
        values = one.downstream_test_accuracy.mean("subseed").values
        assert found["mean"] == pytest.approx(values.mean(), rel=1e-6) and found["n"] == 2


@pytest.mark.slow
def test_a_report_tells_what_is_finite_and_no_more(results):
    assert check_diverged(report, results) == set()


def test_every_model_is_the_default_and_has_a_label():
    assert Config().models == tuple(MODELS) == tuple(LABELS)


def test_meta_learning_decays_weights_by_a_hundredth(monkeypatch):
    """Then Adam sees no gradient where that of the loss is -0.01 of a weight."""
    made = []

    def stop(network, structure, optimizer, **options):
        made.append(optimizer)
        raise InterruptedError

    monkeypatch.setattr(stages.plasticity, "meta_learn", stop)
    config = Config(width=12, cap=6, features=4)
    upstream = MODELS["pre_post_l2"].upstream(config)
    assert upstream is not None
    with pytest.raises(InterruptedError):
        jax.eval_shape(stages.meta_learning(upstream, config).init, jax.random.key(0), ())
    (optimizer,), weight = made, jnp.float32(2.0)
    moves = [optimizer.update(g, optimizer.init(weight), weight)[0] for g in (-0.02, -0.03, -0.01)]
    np.testing.assert_allclose(moves, [0, config.learning_rate, -config.learning_rate], rtol=1e-4, atol=1e-7)
