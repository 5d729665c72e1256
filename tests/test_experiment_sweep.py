"""Sweeps: spaces, compiled programs, samplers, pruning, reports, and workers that share a study or die."""

import io
import json
import re
import time
import tomllib
from collections import Counter
from functools import partial
from itertools import product
from types import SimpleNamespace

import jax
import matplotlib.pyplot as plt
import numpy as np
import optuna
import pytest
import xarray as xr
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from tqdm import tqdm

from experiments import plot
from experiments.folders import read_dataset, without_nan
from experiments.sweep import report, study
from experiments.sweep.config import OFFERED, Config
from experiments.sweep.programs import Programs
from experiments.sweep.space import check_runs, parse_space, read_space
from experiments.sweep.workers import Worker, finished
from experiments.sweeping import while_finite
from tests.command_line import call_main, check_folder, ended, run, start
from tests.compare import slow_but
from tests.sweep_toy import CHUNKS, toy

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

RATES = "learning_rate = { low = 1e-4, high = 1.0, log = true, points = 12 }\n"
TWO = RATES + "penalty = { low = 0, high = 0.5 }"


def config(out, text, name="tests.sweep_toy", **fields):
    """Settings of a sweep with a space."""
    space = out.with_suffix(".toml")
    space.write_text(text)
    return Config(name, space, out=out, **{"seeds": 2, "side_by_side": 2, **fields})


def run_toy(out, text, sweepable=None, **fields):
    """Runs a study in its folder, and returns it."""
    settings = config(out, text, **fields)
    space = read_space(settings, sweepable or toy())
    out.mkdir(exist_ok=True)
    study.run_study("", settings, space, out, tqdm(total=settings.trials))
    return study.open_study(settings, space)


def values_of(found, name="learning_rate"):
    return [trial.params[name] for trial in finished(found)]


def states_of(found):
    return Counter(trial.state.name for trial in found.get_trials())


def test_space_is_read(tmp_path):
    text = """
        kind = "square"
        learning_rate = { low = 0.001, high = 0.1, log = true, points = 3 }
        width = { low = 2, high = 9, points = 2 }
        penalty = { choices = [0, 0.5] }
    """
    space = read_space(config(tmp_path, text, sampler="grid", trials=12), toy())
    assert space.fixed == {"kind": "square", "data": "sample"}
    rate, width, penalty = space.searched.values()
    assert (rate, width) == (FloatDistribution(0.001, 0.1, log=True), IntDistribution(2, 9))
    assert list(space.searched) == ["learning_rate", "width", "penalty"]
    assert penalty == CategoricalDistribution((0.0, 0.5))
    points = {tuple(space.point(i).values()) for i in range(12)}
    assert len(points) == 12 and {point[1:] for point in points} == set(product((2, 9), (0.0, 0.5)))
    assert sorted({point[0] for point in points}) == pytest.approx([0.001, 0.01, 0.1])


@pytest.mark.parametrize(
    ("text", "pattern"),
    {
        "rate = 0.1": "--space: expected fields among learning_rate, .*got 'rate'",
        "learning_rate = true": "learning_rate: expected a finite number, got True",
        "penalty = { low = -1, high = 1 }": "penalty: low: expected a finite number >= 0, got -1",
        f"penalty = 1{'0' * 400}": "penalty: expected a finite number >= 0, got inf",
        "width = 1.5": "width: expected an integer, got 1.5",
        "width = 0": "width: expected at least 1, got 0",
        "data = 3": "data: expected text, got 3",
        "kind = { choices = ['round', 'oval'] }": "kind: choices: expected one of round, square, got 'oval'",
        "kind = { choices = [] }": r"kind: expected a list of at least one choice, got \[\]",
        "penalty = { choices = [1, 1.0] }": "penalty: expected each choice once",
        "kind = { low = 1, high = 2 }": "kind: expected { choices }, since it is not a number, got a range",
        "penalty = { low = 1 }": "penalty: expected a value, { choices } or .*got a table with low",
        "penalty = { low = 2, high = 1 }": "penalty: expected low below high, got 2.0 and 1.0",
        "penalty = { low = 0, high = 1, log = true }": "penalty: low: expected a number > 0",
        "penalty = { low = 0, high = 1, points = 1 }": "penalty: points: expected an integer in 2..",
        "width = 3": "--space: expected at least one field with choices or a range, got none",
        "learning_rate = {": r"--space: expected valid TOML, got .*\.toml",
        TWO: "--space: penalty: expected points = N with --sampler grid",
        RATES: "--trials: expected at most 12, the points of the grid, got 13",
    }.items(),
)
def test_a_bad_space_is_refused(tmp_path, text, pattern):
    with pytest.raises(ValueError, match=pattern):
        read_space(config(tmp_path, text, sampler="grid", trials=13), toy())


CANNOT_RUN = [
    ("microlearning", "sigma = { choices = [0.1, 0] }", "sigma: choices: expected a finite number > 0"),
    ("birth_death", "units = { low = 10, high = 2000000000 }", "--space: units: expected a size .*memory"),
    ("nothing", RATES, "--experiment: expected one of .*, or a module that defines a SWEEPABLE, got"),
    ("tests.refusal", RATES, "got 'tests.refusal' .*no attribute 'SWEEPABLE'"),
    ("tests.sweep_toy --storage nowhere", RATES, "--storage: expected the URL of a database, got 'nowhere'"),
    ("decorrelation", "batch_size = { low = 1, high = 4001 }", "at most 4000 images, got 4001"),
    ("plasticity_transfer", "width = { choices = [100, 20] }\ncap = { choices = [10, 30] }",
     "width: expected at least the cap of 30, got 20"),
    ("microlearning", "data = { choices = ['sample', 'no'] }", "data: expected"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "pattern"), slow_but(CANNOT_RUN[:5], CANNOT_RUN), ids=range(8))
def test_what_cannot_run_is_refused_before_the_first_trial(tmp_path, name, text, pattern):
    space, out = config(tmp_path, text).space, tmp_path / "out"
    code, _, errors = run("sweep", "--experiment", *name.split(), "--space", space, "--out", out)
    assert code == 2 and re.search(pattern, errors) and not out.exists(), errors


SMALL = {
    "birth_death": {"steps": 10, "units": 4, "batch_size": 5, "problem": "mixture"},
    "decorrelation": {"updates": 5, "batch_size": 4},
    "microlearning": {"epochs": 1, "hidden": 4, "batch_size": 400},
    "plasticity_transfer": {"epochs": 1, "points": 100, "width": 10, "cap": 5, "batch_size": 20},
    "symbolic_discriminator": {"epochs": 10, "width": 4, "latents": 1, "iterations": 1},
}


@pytest.mark.parametrize("name", slow_but(["birth_death"], OFFERED))
def test_every_experiment_can_be_swept_in_one_program(tmp_path, name):
    settings, traces = config(tmp_path, "", name), []
    offered = settings.sweepable()
    check_runs(settings, parse_space({next(iter(offered.traced)): {"low": 0.1, "high": 1}}, offered))

    def make(static):
        program = offered.make(static)
        return program._replace(advance=lambda *a: traces.append(1) or program.advance(*a))

    usual = {**offered.defaults(), **SMALL[name]}
    trials = [{**usual, **{n: factor * v for n, v in offered.traced.items()}} for factor in (1, 5, 1e30)]
    programs = Programs(offered._replace(make=make), jax.random.split(jax.random.key(0), 2), 2)
    first, _ = programs.run(trials[:1], lambda *_: False)
    traced = len(traces)
    scores, ended = programs.run(trials, lambda *_: False)
    assert len(traces) == traced  # nothing compiles again
    assert scores.shape == (3, 2) and np.isfinite(scores[:2]).all() and ended.all()
    np.testing.assert_array_equal(scores[:1], first)
    assert (scores[0] != scores[1]).any() or offered.direction == "maximize"
    if name == "birth_death":  # the score is the loss
        assert not np.isfinite(scores[2]).any()


def test_groups_of_one_shape_and_scores_by_hand(tmp_path):
    traces, text = [], RATES + "width = { choices = [1, 3] }"
    options = {"sampler": "grid", "trials": 24, "batch": 10, "pruner": "none"}
    found = run_toy(tmp_path, text, toy(lambda: traces.append(1)), **options)
    assert len(traces) == 2  # one program a width, though there are three batches
    assert len(set(zip(values_of(found), values_of(found, "width"), strict=True))) == 24
    noise = [0.01 * float(jax.random.normal(key)) for key in jax.random.split(jax.random.key(0), 2)]
    for trial in finished(found):
        goal = -((np.log10(trial.params["learning_rate"]) + 2) ** 2)
        expected = [trial.params["width"] * (goal + of_seed) for of_seed in noise]
        assert trial.user_attrs["scores"] == pytest.approx(expected, abs=1e-5)
        assert trial.value == pytest.approx(np.median(expected), abs=1e-5)


def test_stopped_trials_cost_nothing_and_disturb_no_others():
    programs = Programs(toy(), jax.random.split(jax.random.key(0), 2), 2)
    trials = [{**toy().defaults(), "learning_rate": float(rate)} for rate in np.geomspace(1e-4, 1, 10)]
    whole, _ = programs.run(trials, lambda *_: False)
    seen, calls = [], []
    ((shape, program),) = programs._programs.items()
    counted = program._replace(advance=lambda *of: calls.append(int(of[1])) or program.advance(*of))
    programs._programs[shape] = counted

    def odd(place, chunk, scores):
        seen.append((chunk, place))
        np.testing.assert_allclose(scores, whole[place] * chunk / CHUNKS, rtol=1e-6)
        return place % 2 == 1 if chunk == 1 else place > 2

    stopped, ended = programs.run(trials, odd)
    assert seen == [*((1, i) for i in range(10)), *((2, i) for i in range(0, 10, 2))]
    assert np.flatnonzero(ended).tolist() == [0, 2]
    chunks = np.array([3, 1, 3, 1, 2, 1, 2, 1, 2, 1])  # before the end of each
    np.testing.assert_allclose(stopped, whole * chunks[:, None] / CHUNKS, rtol=1e-6)
    assert Counter(calls) == {0: 5, 1: 3, 2: 1}  # blocks of two
    assert not programs.run(trials, lambda *_: True)[1].any() and Counter(calls) == {0: 10, 1: 3, 2: 1}


@pytest.mark.parametrize("sampler", slow_but(["grid", "tpe"], study.SAMPLERS))
def test_every_sampler_asks_and_is_told(tmp_path, sampler):
    text, pieces = RATES if sampler == "grid" else TWO, tmp_path / "pieces"
    options = {"sampler": sampler, "pruner": "none"}
    for trials in (7, 12):
        found = run_toy(pieces, text, batch=4, trials=trials, **options)
    assert states_of(found) == {"COMPLETE": 12} and len(set(values_of(found))) == 12
    if sampler in ("random", "grid"):  # whose draws do not depend on batches
        whole = run_toy(tmp_path / "whole", text, batch=12, trials=12, **options)
        assert values_of(whole) == values_of(found)
    if sampler == "grid":
        assert sorted(values_of(found)) == pytest.approx(np.geomspace(1e-4, 1, 12))


def test_pruning_stops_hopeless_trials(tmp_path):
    found = run_toy(tmp_path, RATES, sampler="random", batch=8, trials=24)
    trials, results = finished(found), report.as_dataset(found, parse_space(tomllib.loads(RATES), toy()))
    np.testing.assert_array_equal(np.isnan(results["median"]), ~results.complete)
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    assert all(trial.number >= 8 for trial in pruned) and len(pruned) >= 3  # the first batch is compared with
    assert all(max(trial.intermediate_values) < CHUNKS for trial in pruned)
    kept = [trial.values[0] for trial in trials if trial.state == TrialState.COMPLETE]
    assert max(CHUNKS * trial.values[0] for trial in pruned) < np.median(kept) + 0.1
    assert all(len(trial.intermediate_values) == CHUNKS - 1 for trial in trials[:8])


def test_trials_that_are_not_finite_are_pruned_and_reported(tmp_path):
    found = run_toy(tmp_path / "0", "learning_rate = { choices = [0.0, 0.01] }", sampler="grid", trials=2)
    states = {trial.params["learning_rate"]: trial.state.name for trial in finished(found)}
    assert states == {0.0: "PRUNED", 0.01: "COMPLETE"}
    text = RATES + "kind = 'square'"  # diverges in the last chunk
    found = run_toy(tmp_path / "1", text, trials=2, pruner="none")
    results = report.as_dataset(found, parse_space(tomllib.loads(text), toy()))
    assert states_of(found) == {"PRUNED": 2} and report.figures(results) == {}
    assert report.table(report.rows(results)) == "2 trials, 2 of them stopped early"
    for loss, expected in ((np.inf, np.nan), (3e38, np.float32(0.1))):
        found = while_finite(jax.numpy.float32(0.1), jax.numpy.array([1.0, loss]))
        np.testing.assert_array_equal(found, expected)


def test_best_trials_come_first_by_their_medians():
    columns = {"median": [3.0, 1.0, 2.0, 0.0], "complete": [True, True, True, False]}
    results = xr.Dataset({name: ("trial", column) for name, column in columns.items()})
    for direction, order in {"minimize": [1, 2, 0], "maximize": [0, 2, 1]}.items():
        assert report.best_first(results.assign_attrs(direction=direction)).tolist() == order
    ten = np.array([5.0, 1, 3, 2, 4, 6, 8, 7, 9, 10])
    assert report.summary(ten) == (5.5, 2.0, 9.0)  # ranks 2 and 9 of 10
    assert report.summary(np.array([1.0, 2, np.inf])) == (2.0, 1.0, np.inf)
    assert np.isnan(report.summary(np.array([1.0, np.nan, 2]))).all()


@pytest.mark.parametrize("left", [b'{"op_code": 7, "wor', b"\xff\xfe"])
def test_a_study_goes_on_after_what_a_dead_worker_left(tmp_path, left):
    run_toy(tmp_path, RATES, trials=1)
    for text, seeds, named in ((RATES, 3, "seeds: 2 before, 3 now"), (TWO, 2, "space: .* now")):
        with pytest.raises(ValueError, match=rf"--study: expected one of this.*\({named}\)"):
            run_toy(tmp_path, text, trials=1, seeds=seeds)
    journal = tmp_path / "journal.log"
    journal.write_bytes(journal.read_bytes() + left)
    for trials in (1, 2):
        assert len(finished(run_toy(tmp_path, RATES, trials=trials))) == trials
    journal.write_bytes(journal.read_bytes() + left + b"\n")  # damaged by something else than a worker
    with pytest.raises(ValueError, match=r"--out: expected the journal.*journal\.log.*delete it"):
        run_toy(tmp_path, RATES, trials=3)


@pytest.fixture
def workers(tmp_path, request):
    """Workers on one study of six trials in a journal or a database, each with a connection of its own."""
    storage = f"sqlite:///{tmp_path / 'study.db'}" if hasattr(request, "param") else None
    settings = config(tmp_path, RATES, storage=storage, trials=6, sampler="random")
    space = read_space(settings, toy())
    opened = partial(study.open_study, settings, space)
    worker = lambda patience=60.0: Worker(opened(), space, 6, patience)  # noqa: E731
    return SimpleNamespace(space=space, study=opened, worker=worker)


@pytest.mark.parametrize("workers", ["in a database"], indirect=True)
def test_trials_of_a_dead_worker_are_repeated(workers, monkeypatch):
    dead = workers.worker()
    lost = [trial.params for trial in dead.claim(4)]  # and no sign of life from now on
    with workers.worker() as worker:
        assert len(worker.claim(10)) == 2  # what is left
        now, repeated = time.time, []
        monkeypatch.setattr(time, "time", lambda: now() + 61)
        while mine := worker.claim(10):  # one of the lost at a time: it may be what killed the worker
            assert worker.claim(10) == mine
            repeated += [trial.params for trial in mine]
            for trial in mine:
                worker.tell(trial, 1.0, [1.0])
        assert repeated[2:] == lost
    assert states_of(workers.study()) == {"COMPLETE": 6, "FAIL": 4}
    for trial in list(dead._mine.values()):  # it was not dead but slow: what it tells comes too late
        dead.report(trial, 1, 5.0)
        dead.tell(trial, 5.0, [5.0])
    assert [trial.value for trial in finished(workers.study())] == [1.0] * 6


def test_a_trial_that_kills_every_worker_is_given_up(workers, monkeypatch, capsys):
    monkeypatch.setattr("experiments.sweep.workers.MOST_DEATHS", 3)
    now, claimed = time.time, []
    for number in range(6):
        monkeypatch.setattr(time, "time", lambda number=number: now() + 61 * number)
        worker = workers.worker()
        while mine := worker.claim(4):
            claimed.append([trial.user_attrs["slot"] for trial in mine])
            if 2 in claimed[-1]:  # it dies, and of the others too none is told
                break
            for trial in mine:
                worker.tell(trial, 1.0, [1.0])
    assert claimed == [[0, 1, 2, 3], [4, 5], [0], [1], [2], [3], [2]]
    states = [trial.state.name for trial in finished(workers.study())]
    assert states == ["COMPLETE"] * 2 + ["FAIL"] + ["COMPLETE"] * 3
    assert "trial 2 is given up: 3 workers died running {'learning_rate': " in capsys.readouterr().err

    results = report.as_dataset(workers.study(), workers.space)  # draws what is finite
    assert results.complete.values.tolist() == [True, True, False, True, True, True]
    results["high"].values[:2] = np.inf, 3e38
    rows = without_nan(report.rows(results))
    assert "1 .. -" in report.table(rows) and json.dumps(rows, allow_nan=False)
    for figure in report.figures(results).values():
        figure.savefig(io.BytesIO(), format="png", dpi=20)
        plt.close(figure)


def test_trials_of_a_live_worker_are_left_alone(workers):
    with workers.worker(2.0) as one, workers.worker(2.0) as other:
        assert len(one.claim(4)) == 4
        time.sleep(2.1)
        assert len(other.claim(10)) == 2 and len(other.claim(10)) == 2
    assert states_of(workers.study()) == {"FAIL": 6}  # both gave back what they had
    first = [trial.params for trial in workers.study().get_trials()[:6]]
    assert [trial.params for trial in workers.worker().claim(10)] == first


def test_slots_that_are_queued_twice_are_filled_once(workers, monkeypatch):
    one, other = workers.worker(), workers.worker()
    one._study.enqueue_trial({}, user_attrs={"slot": 5})  # by a worker that died before it asked for it
    before, look = [one._study.get_trials()], other._study.get_trials
    assert len(one.claim(4)) == 4
    late = lambda *arguments, **named: before.pop() if before else look(*arguments, **named)  # noqa: E731
    monkeypatch.setattr(other, "_fail_dead", lambda: None)
    monkeypatch.setattr(other._study, "get_trials", late)
    assert len(other.claim(6)) == 2
    assert states_of(workers.study()) == {"RUNNING": 6, "FAIL": 4}
    trials = workers.study().get_trials()
    running = [trial.number for trial in trials if trial.state == TrialState.RUNNING]
    assert sorted({*one._mine, *other._mine}) == running


TEXT = RATES + "width = { choices = [1, 2] }"
OPTIONS = {"trials": 16, "batch": 4, "seeds": 2, "sampler": "random", "pruner": "none", "patience": 3}


def command(out):
    """Arguments of a sweep of the toy in a folder."""
    options = [f"--{name}={value}" for name, value in OPTIONS.items()]
    space = ("--space", config(out, TEXT).space)
    return ("--experiment", "tests.sweep_toy", "--resume", *space, "--out", out, *options)


@pytest.mark.slow
def test_command_writes_what_a_study_found(tmp_path):
    code, printed, errors = run("sweep", *command(out := tmp_path / "out"))
    assert code == 0 and "16 trials" in printed and "16/16" in errors, errors
    assert f"--resume: {out} holds no run; starting a new one" in errors
    figures = ("history", "importance", "parallel_coordinates", "slices")
    check_folder(out, parts=("journal.log", "trials"), figures=figures)
    before = {path: path.read_bytes() for path in out.glob("*.png")}
    for path in before:
        path.unlink()
    code, printed, errors = call_main(plot.main, out)
    assert code == 0 and set(printed.split()) == set(map(str, before)), errors
    assert {path: path.read_bytes() for path in out.glob("*.png")} == before
    assert all(content[:4] == b"\x89PNG" for content in before.values())
    results = read_dataset(out / "results.nc")
    assert results.score.dims == ("trial", "seed") and results.score.shape == (16, 2)
    np.testing.assert_allclose(results["median"], np.median(results.score, axis=1), rtol=1e-5)
    rows = json.loads((out / "summary.json").read_text())["rows"]
    assert rows[1]["median"] == pytest.approx(float(results["median"].max()))
    shares = {row["parameter"]: row["importance"] for row in rows if "parameter" in row}
    assert shares["learning_rate"] > 0.3 and sum(shares.values()) == pytest.approx(1)


SLOWLY = """
import sys
import time
from experiments.sweep.__main__ import main
from experiments.sweep.programs import Programs
run = Programs.run
Programs.run = lambda *arguments: time.sleep(0.5) or run(*arguments)
sys.exit(main())
"""


@pytest.mark.slow
def test_workers_finish_what_a_killed_one_began(tmp_path):
    journal, worker = tmp_path / "out" / "journal.log", partial(start, SLOWLY, *command(tmp_path / "out"))

    def found():
        storage = study.storage_of(config(tmp_path / "out", TEXT, **OPTIONS))
        return optuna.load_study(study_name="tests.sweep_toy", storage=storage)

    killed, others, deadline = worker(), [worker()], time.monotonic() + 120
    while not journal.exists() or b"worker " not in journal.read_bytes() or len(finished(found())) < 6:
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    others.append(worker())
    assert [ended(other)[0] for other in others] == [0, 0]

    states = states_of(found())
    assert states.keys() == {"COMPLETE", "FAIL"} and states["COMPLETE"] == 16  # no slot is filled twice
    whole = run_toy(tmp_path / "whole", TEXT, **OPTIONS)  # by one worker
    here, there = ([(trial.params, trial.value) for trial in finished(of)] for of in (found(), whole))
    assert here == there
