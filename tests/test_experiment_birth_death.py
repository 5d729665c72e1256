"""Birth and death from the command line: what it writes, its report, and its problem by hand."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lax_learning as ll
from experiments import harness
from experiments.birth_death import report
from experiments.birth_death.__main__ import Carry, measured_at, run_of
from experiments.birth_death.config import Config
from experiments.birth_death.problems import MEANS, PROBLEMS, SCHEMES, VARIANCES, WEIGHTS, mixture_energy
from experiments.birth_death.report import LABELS, median_interval, slopes, times_to
from tests.command_line import run
from tests.finished import check_diverged, check_folder, row_of

SMALL = [
    *("--problems", "planted", "mixture", "--schemes", "clone", "--seeds", "3", "--steps", "30"),
    *("--records", "5", "--units", "6", "--teacher-units", "2", "--features", "4", "--batch-size", "10"),
    *("--alpha-clone", "20", "--alpha-mixture", "1", "--mixture-units", "8", "--test-points", "50"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run of two problems, its folder and what it printed."""
    out = tmp_path_factory.mktemp("run") / "whole"
    code, printed, errors = run("birth_death", *SMALL, "--out", out, drawn=False)
    assert code == 0, errors
    return out, printed, errors


@pytest.fixture(scope="module")
def results(finished):
    return harness.read_dataset(finished[0] / "results.nc")


def test_folder_holds_everything(finished):
    out, printed, errors = finished
    figures = [f"{p}_{f}" for p in ("planted", "mixture") for f in ("loss", "times", "events", "places")]
    check_folder(out, parts=("parts", "params"), figures=figures)
    assert "planted teacher: GD + clone" in printed and "mixture of Gaussians: GD " in printed
    assert "60/60" in errors  # 2 problems x 30 steps


def test_results_have_named_axes(results):
    assert list(results.scheme.values) == ["clone"]
    steps = results.planted_step.values
    assert steps[0] == 0 and steps[-1] == 30 and (np.diff(steps) > 0).all()
    assert results.planted_loss.dims == ("scheme", "seed", "planted_step")
    assert results.planted_places.shape == (1, 3, len(steps), 6, 2)
    assert results.planted_targets.shape == (3, 2, 2) and results.mixture_targets.shape == (3, 3, 2)
    clone = results.sel(scheme="clone")
    for problem, units in (("planted", 6), ("mixture", 8)):
        assert np.isfinite(results[f"{problem}_loss"]).all()
        happened = clone[f"{problem}_killed"] + clone[f"{problem}_cloned"]
        assert (np.diff(happened) >= 0).all() and (happened[:, -1] > 0).any()
        assert (clone[f"{problem}_lineages"][:, 0] == units).all()
        assert (clone[f"{problem}_lineages"][:, -1] < units).any()
        assert len(np.unique(clone[f"{problem}_loss"][:, -1])) == 3
    # The mixture's last third is without events.
    events_late = clone.mixture_killed.values[:, results.mixture_step.values >= 20]
    assert (events_late == events_late[:, :1]).all()


@pytest.mark.slow
def test_a_part_alone_and_without_events_has_the_same_start(results, tmp_path):
    one = [*SMALL, "--problems", "planted", "--schemes", "gd", "clone", "--out", tmp_path]
    assert run("birth_death", *one, drawn=False)[0] == 0
    alone = harness.read_dataset(tmp_path / "results.nc")
    np.testing.assert_array_equal(alone.planted_loss.sel(scheme="clone"), results.planted_loss[0])
    np.testing.assert_array_equal(alone.planted_loss[0, :, 0], alone.planted_loss[1, :, 0])


def test_summary_is_of_the_results(finished, results):
    losses = results.planted_loss.sel(scheme="clone").values
    found = row_of(finished[0], problem="planted", scheme="clone", metric="final_loss")
    assert found["mean"] == pytest.approx(losses[:, -1].mean(), rel=1e-6) and found["n"] == 3
    reached = times_to(results.planted_step.values, losses, 1e-2)
    found = row_of(finished[0], problem="planted", scheme="clone", metric="median_steps_to_1e-02")
    assert found["reached"] == np.isfinite(reached).sum()


@pytest.mark.slow
def test_a_report_tells_what_is_finite_and_no_more(results):
    planted = results.drop_vars([name for name in results.variables if str(name).startswith("mixture_")])
    assert check_diverged(report, planted) == set()


def test_every_scheme_is_the_default_and_has_a_label():
    assert Config().schemes == tuple(SCHEMES) == tuple(LABELS) and Config().problems == tuple(PROBLEMS)


def test_gradients_and_events_have_keys_of_their_own(monkeypatch):
    seen, params = [], {"w": jnp.zeros(3)}
    population: Any = ()

    def update(key, params, population, gradients):
        seen.append(key)
        return (params, population), None

    problem = PROBLEMS["planted"](Config())._replace(
        gradients=lambda key, target, params: seen.append(key) or params
    )
    monkeypatch.setattr(ll.birth_death, "dynamics", lambda *_, **__: SimpleNamespace(update=update))
    run = run_of(problem, SCHEMES["clone"], Config(), np.array([0, 2]))
    with jax.disable_jit():
        run.step(Carry(jax.random.key(0), (), params, population), 0, ())
    assert len({jax.random.key_data(key).tobytes() for key in seen}) == len(seen) == 4


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
    steps = np.array([0, 1, 2, 10, 20, 40, 100])
    losses = np.stack([np.maximum(steps, 1.0) ** -1.5, np.maximum(steps, 1.0) ** -0.5])
    losses[:, 2] = 7.0  # before the last decade
    np.testing.assert_allclose(slopes(steps, losses), [-1.5, -0.5], rtol=1e-12)
    np.testing.assert_array_equal(times_to(steps, losses, 0.09), [10, np.inf])
    middle, low, high = median_interval(np.array([5.0, 1, 3, np.inf, 2, 4, 6, 8, 7, 9, np.inf]))
    assert middle == 6 and low == 2 and high == np.inf
