"""Birth and death from the command line: what it writes and refuses, and that a kill loses nothing."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from experiments import harness
from experiments.birth_death import report
from experiments.birth_death.__main__ import measured_at
from experiments.birth_death.config import Config
from experiments.birth_death.problems import MEANS, PROBLEMS, SCHEMES, VARIANCES, WEIGHTS, mixture_energy
from experiments.birth_death.report import LABELS, median_interval, slopes, times_to
from tests.command_line import run
from tests.diverged import check_report
from tests.finished import check_names, check_redrawn

NAME = "birth_death"
SMALL = [
    *("--problems", "planted", "mixture", "--schemes", "gd", "clone", "--seeds", "3", "--steps", "30"),
    *("--records", "5", "--units", "6", "--teacher-units", "2", "--features", "4", "--batch-size", "10"),
    *("--alpha-clone", "20", "--alpha-mixture", "1", "--mixture-units", "8", "--test-points", "50"),
]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """Results of one problem and scheme, stopped on the way."""
    out = tmp_path_factory.mktemp("run") / "stopped"
    one = [*SMALL, "--problems", "planted", "--schemes", "clone", "--out", out]
    code, _, errors = run(NAME, *one, interrupted_in=out / "checkpoints" / "planted-clone")
    assert code == 130 and "--resume goes on" in errors and not (out / "results.nc").exists()
    code, _, errors = run(NAME, *one, "--resume", drawn=False)
    assert code == 0, errors
    return harness.read_dataset(out / "results.nc")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run of two problems and two schemes, its folder and what it printed."""
    out = tmp_path_factory.mktemp("run") / "whole"
    code, printed, errors = run(NAME, *SMALL, "--out", out)
    assert code == 0, errors
    return out, printed, errors


@pytest.mark.slow
def test_stopped_run_goes_on_to_the_same_results(resumed, finished):
    expected = harness.read_dataset(finished[0] / "results.nc").sel(scheme=["clone"])
    chosen = {"problems": ["planted"], "schemes": ["clone"], "steps": {"planted": 30}}
    assert json.loads(resumed.attrs["config"]) == {**json.loads(expected.attrs["config"]), **chosen}
    of_problem = [name for name in expected.variables if not str(name).startswith("mixture_")]
    xr.testing.assert_identical(resumed.assign_attrs(expected.attrs), expected[of_problem])


def test_folder_holds_everything(finished):
    out, printed, errors = finished
    figures = {f"{p}_{f}.png" for p in ("planted", "mixture") for f in ("loss", "times", "events", "places")}
    assert {p.name for p in out.iterdir()} == {
        "config.json", "results.nc", "summary.json", "parts", "params", *figures,
    }  # fmt: skip
    assert all((out / name).read_bytes()[:4] == b"\x89PNG" for name in figures)
    assert "planted teacher: GD + clone" in printed and "mixture of Gaussians: GD " in printed
    assert "120/120" in errors  # 2 problems x 2 schemes x 30 steps
    check_names(out)
    check_redrawn(out)


def test_results_have_named_axes(finished):
    out, _, _ = finished
    results = harness.read_dataset(out / "results.nc")
    assert list(results.scheme.values) == ["gd", "clone"]
    steps = results.planted_step.values
    assert steps[0] == 0 and steps[-1] == 30 and (np.diff(steps) > 0).all()
    assert results.planted_loss.dims == ("scheme", "seed", "planted_step")
    assert results.planted_places.shape == (2, 3, len(steps), 6, 2)
    assert results.planted_targets.shape == (3, 2, 2) and results.mixture_targets.shape == (3, 3, 2)
    gd, clone = results.sel(scheme="gd"), results.sel(scheme="clone")
    for problem, units in (("planted", 6), ("mixture", 8)):
        assert np.isfinite(results[f"{problem}_loss"]).all()
        # Without events everybody stays; with them the same start, and then another course.
        assert (gd[f"{problem}_killed"] == 0).all() and (gd[f"{problem}_cloned"] == 0).all()
        assert (gd[f"{problem}_lineages"] == units).all()
        happened = clone[f"{problem}_killed"] + clone[f"{problem}_cloned"]
        assert (np.diff(happened) >= 0).all() and (happened[:, -1] > 0).any()
        assert (clone[f"{problem}_lineages"][:, -1] < units).any()
        np.testing.assert_array_equal(gd[f"{problem}_loss"][:, 0], clone[f"{problem}_loss"][:, 0])
        assert len(np.unique(clone[f"{problem}_loss"][:, -1])) == 3
    # The mixture's last third is without events.
    late = results.mixture_step.values >= 20
    events_late = clone.mixture_killed.values[:, late]
    assert (events_late == events_late[:, :1]).all()


def test_summary_is_of_the_results(finished):
    out, _, _ = finished
    results = harness.read_dataset(out / "results.nc")
    rows = json.loads((out / "summary.json").read_text())["rows"]

    def row(metric):
        key = ("planted", "clone", metric)
        (found,) = (r for r in rows if (r["problem"], r["scheme"], r["metric"]) == key)
        return found

    losses = results.planted_loss.sel(scheme="clone").values
    assert row("final_loss")["mean"] == pytest.approx(losses[:, -1].mean(), rel=1e-6)
    assert row("final_loss")["n"] == 3
    reached = times_to(results.planted_step.values, losses, 1e-2)
    assert row("median_steps_to_1e-02")["reached"] == np.isfinite(reached).sum()


def test_a_report_tells_what_is_finite_and_no_more(finished):
    rows = check_report(report, harness.read_dataset(finished[0] / "results.nc"))
    assert {row["metric"] for row in rows if row["mean"] is not None} == set()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": 0}, "--seeds: expected at least 1, got 0"),
        ({"features": 1}, "--features: expected at least 2, got 1"),
        ({"steps": 5}, "--steps: expected at least 10, got 5"),
        ({"records": 1}, "--records: expected at least 2, got 1"),
        ({"alpha_clone": -1.0}, "--alpha-clone: expected a finite number >= 0, got -1.0"),
        ({"learning_rate": 0.0}, "--learning-rate: expected a finite number > 0, got 0.0"),
        ({"problems": ()}, "--problems: expected"),
        ({"schemes": ("gd", "gd")}, "--schemes: expected"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Config(**arguments)


def test_every_scheme_is_the_default_and_has_a_label():
    assert Config().schemes == tuple(SCHEMES) == tuple(LABELS)
    assert Config().problems == tuple(PROBLEMS)


def test_energy_of_the_mixture_is_half_the_squared_distance():
    rng = np.random.default_rng(0)
    c, y = rng.normal(size=20).astype("f4"), rng.uniform(-2, 2, 20).astype("f4")
    x = np.linspace(-12, 12, 4001)

    def density(difference, variance):
        return np.exp(-(difference**2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)

    target = sum(w / 3 * density(x - m, v) for w, m, v in zip(WEIGHTS, MEANS, VARIANCES, strict=True))
    found = (c[:, None] * density(x - y[:, None], 0.5)).mean(axis=0)
    expected = 0.5 * np.sum((target - found) ** 2) * (x[1] - x[0])
    assert float(mixture_energy(jnp.asarray(c), jnp.asarray(y))) == pytest.approx(expected, rel=1e-5)


def test_measurements_are_log_spaced_and_never_far_apart():
    times = measured_at(100_000, 60)
    assert times[0] == 1 and times[-1] == 100_000 and np.diff(times).max() <= 2_000
    assert (times <= 1_000).sum() > 25
    assert measured_at(10, 3).tolist() == list(range(1, 11))  # none twice, none before the first


def test_statistics_of_the_report():
    steps = np.array([0, 1, 10, 20, 40, 100])
    losses = np.stack([np.maximum(steps, 1.0) ** -1.5, np.maximum(steps, 1.0) ** -0.5])
    np.testing.assert_allclose(slopes(steps, losses), [-1.5, -0.5], rtol=1e-12)
    np.testing.assert_array_equal(times_to(steps, losses, 0.09), [10, np.inf])
    middle, low, high = median_interval(np.array([5.0, 1, 3, np.inf, 2, 4, 6, 8, 7, 9, np.inf]))
    assert middle == 6 and low == 2 and high == np.inf
