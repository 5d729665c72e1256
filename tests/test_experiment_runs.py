"""Experiments from the command line: what they write, what they tell, and that a stop loses nothing."""

import json
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import xarray as xr

import lax_learning as ll
from experiments import compare, load_params, plot
from experiments.decorrelation.report import NOTEBOOK, PUBLISHED
from experiments.decorrelation.report import figures as decorrelation_figures
from experiments.decorrelation.runs import STUDIES, notebook_runs
from experiments.finished import read_run
from experiments.folders import differing
from experiments.microlearning.__main__ import choose_test_images, keys_of, load
from experiments.microlearning.config import Config
from experiments.microlearning.networks import make_problem
from tests.command_line import BIRTH_DEATH, call_main, check_diverged, check_folder, row_of, run
from tests.compare import slow_but

MNIST = Path(__file__).parents[2] / "shared" / "data" / "mnist"
DATA = MNIST if MNIST.is_dir() else "sample"
EPOCHS = {"alone": 10, "one_layer": 10, "two_layers": 2, "two_layers_fixed": 12}
GAIN = ["dense-backprop-plain", "dense-backprop-decorrelated"]
OWN = "lax_learning:backprop"  # as one's own rule, by its import path
BCE = "accuracy-bce-quadratic-none-6x128-5_latents-5_iterations"


class Case(NamedTuple):
    """A small run of an experiment, and another one that has parts in common with it."""

    options: str
    whole: str
    other: str
    stop: str  # the checkpoint in which the other one is stopped
    written: str  # folders of parts and parameters; figures
    told: tuple[str, ...]
    row: dict[str, Any]
    values: Callable[[Any], Any]  # of this row, one a seed


CASES = {
    "birth_death": Case(
        BIRTH_DEATH,
        whole="--problems planted mixture --schemes clone",
        other="--problems planted --schemes gd clone",
        stop="planted-clone",
        written="parts params; planted_loss planted_times planted_events planted_places "
        "mixture_loss mixture_times mixture_events mixture_places",
        told=("planted teacher: GD + clone", "mixture of Gaussians: GD ", "60/60"),
        row={"problem": "planted", "scheme": "clone", "metric": "final_loss"},
        values=lambda found: found.planted_loss.sel(scheme="clone")[:, -1],
    ),
    "decorrelation": Case(
        f"--networks dense --rules backprop --seeds 4 --updates 10 --test-images 20 --data {DATA}",
        whole="--studies notebook gain",
        other="--studies gain",
        stop=GAIN[1],
        written="runs params; notebook moments gain",
        told=(*NOTEBOOK.values(), *GAIN, f"{(4 + sum(EPOCHS.values())) * 15 + 2 * 11}/"),  # updates
        row={"run": "one_layer", "metric": "decorrelation_loss", "epoch": 4},
        values=lambda found: 15 * found.sel(run="one_layer", step=4).decorrelation_loss.isel(rate=0, layer=0),
    ),
    "microlearning": Case(
        "--hidden 6 --seeds 2 --batch-size 500 --epochs 6 --snr-images 10 --draws 4 --test-images 50",
        whole=f"--rules node_perturbation {OWN}",
        other="--rules backprop node_perturbation",
        stop="node_perturbation",
        written="rules params; losses accuracy snr cosine bias_variance",
        told=("node perturbation", "accuracy", "12/12"),
        row={"rule": "node_perturbation", "metric": "cosine"},
        values=lambda found: found.cosine.sel(rule="node_perturbation", layer="layer 1").isel(evaluation=-1),
    ),
    # Nobody reaches an accuracy of 1, so that every seed is repeated.
    "plasticity_transfer": Case(
        "--width 12 --cap 6 --features 4 --seeds 2 --subseeds 2 --attempts 2 --rule-epochs 2 --evaluations 3 "
        "--least-accuracy 1.0 --points 300 100 --batch-size 50",
        whole="--models pre_post_l2 gradient_descent_l2",
        other="--models pre_post_l2",
        stop="pre_post_l2/upstream_1",
        written="models params; learning_curves comparison tables",
        told=("PrePost L2", "gradient descent L2", "down, balanced", "repeating 2 of 2 seeds", "12/12"),
        row={"model": "pre_post_l2", "metric": "downstream_test_accuracy_repeated"},
        values=lambda found: found.downstream_test_accuracy.sel(
            model="pre_post_l2", selection="repeated", evaluation=3
        ).mean("subseed"),
    ),
    "symbolic_discriminator": Case(
        "--points 12 --epochs 20 --seeds 2 --updates 30",
        whole="--studies activations accuracy regularised",
        other="--studies accuracy",
        stop=BCE,
        written="parts; activations accuracy regularised_latents regularised_progress",
        told=("wgan", "bce", "fresh accuracy", "gaussian_process"),
        row={"part": "accuracy: bce", "metric": "fresh_auc"},
        values=lambda found: found["accuracy"].fresh_auc[1, :, -2:].mean("bin"),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Few epochs of the notebook on decorrelation; the search within a cap in fewer and larger steps."""

    def few(config):
        runs = notebook_runs(config).items()
        return {name: run._replace(form=run.form._replace(steps=EPOCHS[name])) for name, run in runs}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("lax_learning.plasticity._k_cap"), "_BITS_A_ROUND", 8)
        patch.setitem(STUDIES, "notebook", few)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Callable[[str], tuple[Path, str, Any]]:
    """Runs an experiment once: its folder, what it printed, and its results."""

    @cache
    def of(name: str) -> tuple[Path, str, Any]:
        out, case = tmp_path_factory.mktemp(name) / "whole", CASES[name]
        options = (*case.options.split(), *case.whole.split())
        code, printed, errors = run(name, *options, "--out", out, drawn=False)
        assert code == 0, errors
        return out, printed + errors, read_run(out).results

    return of


@pytest.mark.parametrize("name", slow_but(["birth_death"], CASES))
def test_folder_holds_everything_and_the_summary_is_of_the_results(whole, name):
    case, (out, printed, results) = CASES[name], whole(name)
    parts, figures = map(str.split, case.written.split(";"))
    check_folder(out, parts=parts, figures=figures)
    assert [text for text in case.told if text not in printed] == []
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary) == {"experiment", "versions", "config", "null", "rows"}
    assert summary["config"] == json.loads((out / "config.json").read_text())
    assert {"jax", "numpy", "lax_learning", "python"} <= set(summary["versions"])
    row, values = row_of(out, **case.row), case.values(results).values
    assert row["mean"] == pytest.approx(values.mean(), rel=1e-6) and row["n"] == len(values)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_run_stopped_in_a_later_part_goes_on_to_the_same_results(whole, name, tmp_path):
    """Other parts beside it change nothing either: what both runs have is the same."""
    case = CASES[name]
    arguments = (name, *case.options.split(), *case.other.split(), "--out", tmp_path)
    assert run(*arguments, interrupted_in=tmp_path / "checkpoints" / case.stop)[0] == 130
    assert not (tmp_path / "results.nc").exists()
    assert run(*arguments, "--resume", drawn=False)[0] == 0
    both: Any = read_run(tmp_path).results, whole(name)[2]
    if name == "symbolic_discriminator":
        both = [results["accuracy"].to_dataset() for results in both]
    same, expected = xr.align(*both, join="inner")
    shared = [each for each in same.data_vars if each in expected and "seconds" not in str(each)]
    assert any("loss" in str(each) or "accuracy" in str(each) for each in shared) and same.sizes["seed"] > 1
    xr.testing.assert_equal(same[shared], expected[shared])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_report_tells_what_is_finite_and_no_more(whole, name):
    results = whole(name)[2]
    if name == "birth_death":
        results = results.drop_vars([v for v in results.variables if str(v).startswith("mixture_")])
    told = check_diverged(import_module(f"experiments.{name}.report"), results)
    of_no_seed = {"learning_rate", "ms_per_update", "seconds_per_update"}
    assert told <= of_no_seed or name == "symbolic_discriminator"


def test_birth_death_has_named_axes(whole):
    out, _, results = whole("birth_death")
    steps, clone = results.planted_step.values, results.sel(scheme="clone")
    assert steps[0] == 0 and steps[-1] == 30 and (np.diff(steps) > 0).all()
    assert results.planted_targets.shape == (3, 2, 2) and results.mixture_targets.shape == (3, 3, 2)
    w, c = (layer["w"] for layer in load_params(out, problem="planted", scheme="clone"))
    weighted = np.swapaxes(w[:, :2] * np.abs(c)[:, None, :, 0], 1, 2)
    np.testing.assert_allclose(clone.planted_places[:, -1], weighted, rtol=1e-6)
    for problem, units in (("planted", 6), ("mixture", 8)):
        loss, lineages = clone[f"{problem}_loss"].values, clone[f"{problem}_lineages"].values
        events = (clone[f"{problem}_killed"] + clone[f"{problem}_cloned"]).values
        assert np.isfinite(loss).all() and len(np.unique(loss[:, -1])) == 3
        assert (np.diff(events) >= 0).all() and events[:, -1].any()
        assert (lineages[:, 0] == units).all() and (lineages[:, -1] < units).any()
    # The mixture's last third is without events.
    late = clone.mixture_killed.values[:, results.mixture_step.values >= 20]
    assert (late == late[:, :1]).all()


@pytest.mark.slow
def test_decorrelation_has_named_axes_and_chooses_its_rate(whole):
    out, _, results = whole("decorrelation")
    assert list(results.run.values) == [*EPOCHS, *GAIN]
    plain, decorrelated = (results.sel(run=name).isel(step=slice(11)) for name in GAIN)
    r = decorrelated.largest_r
    assert (plain.largest_r == 1).all() and (r[..., 0] == 1).all() and (r[..., 2:] != 1).all()
    assert np.isnan(plain.decorrelation_loss).all() and np.isfinite(decorrelated.decorrelation_loss).all()
    assert np.isfinite(plain.test_accuracy).all() and (plain.seconds > 0).all()
    # The same members: before learning, plain and decorrelated are one network.
    np.testing.assert_array_equal(plain.loss[..., 0], decorrelated.loss[..., 0])
    # The validation accuracy is measured at the end, where the learning rate is chosen by it.
    for late in (plain.validation_accuracy, decorrelated.correlation.isel(layer=0)):
        assert np.isnan(late[..., :10]).all() and np.isfinite(late[..., 10]).all()
    best = int(np.argmax(plain.validation_accuracy[..., 10].mean("seed").values))
    expected = float(plain.test_accuracy[best, :, 10].mean())
    assert row_of(out, run=GAIN[0], metric="test_accuracy")["mean"] == pytest.approx(expected, rel=1e-6)
    assert "mean" in row_of(out, run=GAIN[1], metric="updates_share_of_plain")
    choices = results.sel(run=GAIN).assign_coords(study=("run", ["choices"] * 2))
    assert set(decorrelation_figures(choices)) == {"choices"}


@pytest.mark.slow
def test_published_losses_of_decorrelation(whole):
    """One more draw of 1,000 images; in units of the mean, its variance is about the same in all epochs."""
    results = whole("decorrelation")[2]
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
def test_plasticity_has_named_axes(whole):
    out, _, results = whole("plasticity_transfer")
    trained = load_params(out, model="pre_post_l2")
    assert trained["learner"][1][0]["w"].shape[:2] == (2, 2)  # seeds, sub-seeds
    table = results.output_table_pre_post_l2.sel(selection="all")
    np.testing.assert_array_equal(trained["tables"][0]["output"], table)
    plastic, descent = (results.sel(model=name) for name in ("pre_post_l2", "gradient_descent_l2"))
    upstream, downstream = results.upstream_test_accuracy, results.downstream_test_accuracy
    assert np.isfinite(downstream).all() and np.isfinite(upstream[0]).all() and np.isnan(upstream[1]).all()
    assert plastic.samples.values.tolist() == [1333, 2666, 3999]
    # Every seed was run twice; the second attempt is another problem and another network.
    assert (plastic.attempts == 2).all() and (descent.attempts == 1).all()
    first, second = (plastic.upstream_loss.sel(selection=name) for name in ("all", "repeated"))
    assert (first != second).all()
    np.testing.assert_array_equal(*descent.downstream_test_loss.transpose("selection", ...))
    assert len(np.unique(plastic.downstream_test_loss.isel(evaluation=-1))) == 8  # all members differ


@pytest.mark.slow
def test_critics_have_named_axes(whole):
    out, _, results = whole("symbolic_discriminator")
    accuracy, regularised = (results[name].to_dataset() for name in ("accuracy", "regularised"))
    assert accuracy.objective.values.tolist() == ["wgan", "bce"] and (accuracy.layers == 6).all()
    assert accuracy.epoch.values.tolist() == list(range(1, 21)) and (accuracy.seconds > 0).all()
    assert accuracy.accuracy.shape == (2, 2, 20) and ((accuracy.accuracy - 0.5) ** 2 <= 0.25).all()
    metrics = ("not_two_lines_through_0", "not_a_parabola")
    lines, parabola = (row_of(out, part="activations: dsn", metric=each)["mean"] for each in metrics)
    assert lines < 1e-4 < parabola
    # The same networks and critics: before learning all runs are alike, afterwards none and no seeds are.
    start, end = regularised.fit_loss[..., 0], regularised.fit_loss[..., -1]
    assert (start == start[0]).all() and len(np.unique(end)) == end.size == 12 and (end < start).all()
    assert regularised.updates[[0, 1, 2, 20]].values.tolist() == [0, 1, 3, 30]


@pytest.mark.slow
def test_microlearning_has_named_axes_and_weights_of_its_accuracies(whole):
    out, _, results = whole("microlearning")
    assert results.loss.shape == (2, 2, 48) and [*results.layer.values] == ["layer 1", "layer 2", "total"]
    assert all(np.isfinite(results[name]).all() for name in results.data_vars)
    assert results.cosine.sel(rule=OWN).min() > 0.999 > results.cosine.sel(rule="node_perturbation").max()
    assert not [path for path in out.rglob("*") if ":" in path.name]  # some file systems refuse it
    params, config = load_params(out, rule=OWN), Config(hidden=(6,), seeds=2, batch_size=500, test_images=50)
    data, model = load(config), make_problem(config).model
    keys = keys_of(config)["test"]
    for i, accuracy in enumerate(results.test_accuracy.sel(rule=OWN).isel(evaluation=-1).values):
        x, y = choose_test_images(keys[i], data, 50).test
        output = model.apply(jax.tree.map(lambda w, i=i: w[i], params), x)
        assert ll.accuracy(output, y) == pytest.approx(accuracy)
    with pytest.raises(ValueError, match=r"^rule: expected one of lax_learning--backprop, node.* got 'x'"):
        load_params(out, rule="x")


def test_two_runs_side_by_side_and_what_is_no_finished_run(whole, tmp_path):
    out, figure = whole("birth_death")[0], tmp_path / "both.pdf"
    code, printed, errors = call_main(compare.main, out, out, "--figure", figure)
    assert code == 0 and figure.read_bytes()[:4] == b"%PDF", errors
    assert "The configurations are the same." in printed
    (line,) = (of for of in printed.splitlines() if of.startswith("| planted clone: final_loss "))
    _, _, a, b, difference, overlap, _ = (cell.strip() for cell in line.split("|"))
    assert a == b and float(difference) == 0 and overlap == "yes"
    assert differing({"x": 1, "y": 2}, {"x": 1, "z": 3}) == {"y": (2, None), "z": (None, 3)}
    low, high = {"mean": 0.5, "ci95": [0, 1], "n": 2}, {"mean": 2.5, "ci95": [2, 3], "n": 2}
    found = compare.table({("loss", "a"): (low, high), ("loss", "b"): (low, None), ("", "c"): (high, low)})
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in found.splitlines()[2:]]
    assert [row[3:] for row in cells] == [["+2", "no"], ["", ""], ["-2", "no"]] and cells[1][2] == ""
    (tmp_path / "config.json").write_text("{}")
    for main, folders in ((plot.main, [tmp_path]), (compare.main, [out, tmp_path])):
        code, _, errors = call_main(main, *folders)
        assert code == 2 and "FOLDER: expected the folder of a finished run" in errors
        assert str(tmp_path) in errors and "--resume" in errors and "Traceback" not in errors
        code, printed, _ = call_main(main, "--help")
        assert (code == 0 and "results.nc" in printed) or "finished runs" in printed
