"""Sweeps: spaces, grouping, compilation, samplers, pruning, and workers that share a study or die."""

import io
import json
import re
import signal
import time
from collections import Counter
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optuna
import pytest
import xarray as xr
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from experiments import harness
from experiments.microlearning import sweep as microlearning_sweep
from experiments.microlearning.sweep import images
from experiments.sweep import report
from experiments.sweep import study as study_module
from experiments.sweep.checks import check_space
from experiments.sweep.config import Config
from experiments.sweep.journal import Journal
from experiments.sweep.programs import Programs
from experiments.sweep.registry import SWEEPABLES
from experiments.sweep.samplers import SAMPLERS, sampler_of
from experiments.sweep.space import parse_space, read_space
from experiments.sweep.study import open_study, run_study, summary
from experiments.sweep.workers import FINISHED, Worker, finished
from experiments.sweeping import while_finite
from tests.command_line import call
from tests.refusal import parametrize_cases, refuses
from tests.sweep_toy import CHUNKS, run_here, start, toy, wait_for

RATES = {"low": 1e-4, "high": 1.0, "log": True, "points": 12}
SPACE = parse_space({"learning_rate": RATES}, toy(), "space")
TWO = parse_space({"learning_rate": RATES, "penalty": {"low": 0, "high": 0.5}}, toy(), "space")


def config(out, **fields):
    return Config("microlearning", Path("space.toml"), out=out, **{"seeds": 2, "side_by_side": 2, **fields})


def run(settings, space, sweepable=None):
    """Runs a study in its folder, and returns it."""
    sweepable = sweepable or toy()
    settings.out.mkdir(exist_ok=True)
    study = open_study(settings, space, sweepable, settings.deciding())
    run_study(settings, study, space, sweepable)
    return study


def values_of(study, name="learning_rate"):
    return [trial.params[name] for trial in finished(study)]


def sqlite(tmp_path, name="study"):
    """A study in a database, opened on its own: as another worker sees it."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    settings = config(tmp_path, storage=url, study=name, trials=6)
    return open_study(settings, SPACE, toy(), settings.deciding())


# Spaces


def test_space_is_read(tmp_path):
    path = tmp_path / "space.toml"
    path.write_text(
        'kind = "square"\n'
        "learning_rate = { low = 0.001, high = 0.1, log = true, points = 3 }\n"
        "width = { low = 2, high = 9, points = 2 }\n"
        "penalty = { choices = [0, 0.5] }\n"
    )
    space = read_space(path, toy())
    assert space.fixed == {"kind": "square", "data": "sample"}
    assert space.searched == {
        "learning_rate": FloatDistribution(0.001, 0.1, log=True),
        "width": IntDistribution(2, 9),
        "penalty": CategoricalDistribution((0.0, 0.5)),
    }
    assert space.grid["learning_rate"] == pytest.approx([0.001, 0.01, 0.1])
    assert space.grid["width"] == [2, 9] and space.grid["penalty"] == [0.0, 0.5]


def _parse(**given):
    return lambda: parse_space(given, toy(), "--space: space.toml")


@parametrize_cases(
    {
        "unknown": (_parse(rate=0.1), ValueError, r"space\.toml: expected fields among .*got 'rate'"),
        "text for number": (_parse(learning_rate="big"), ValueError, "learning_rate: expected a finite num"),
        "bool for number": (_parse(learning_rate=True), ValueError, "learning_rate: expected a finite"),
        "negative": (_parse(penalty=-1), ValueError, "penalty: expected a finite number >= 0, got -1"),
        "not finite": (_parse(penalty=float("nan")), ValueError, "penalty: expected a finite"),
        "float for count": (_parse(width=1.5), ValueError, "width: expected an integer of at least 1"),
        "zero": (_parse(width=0), ValueError, "width: expected an integer of at least 1, got 0"),
        "number for text": (_parse(data=3), ValueError, "data: expected text, got 3"),
        "unknown option": (_parse(kind="oval"), ValueError, "kind: expected one of round, square"),
        "bad choice": (_parse(kind={"choices": ["round", 1]}), ValueError, "kind: choices: expected one"),
        "no choices": (
            _parse(kind={"choices": []}),
            ValueError,
            "kind: expected a list of at least one choice",
        ),
        "choices twice": (_parse(penalty={"choices": [1, 1.0]}), ValueError, "penalty: expected each choice"),
        "range of text": (_parse(kind={"low": 1, "high": 2}), ValueError, "kind: expected { choices }"),
        "no high": (_parse(penalty={"low": 1}), ValueError, "penalty: expected a value, { choices }"),
        "both": (_parse(penalty={"low": 1, "high": 2, "choices": [1]}), ValueError, "penalty: expected a"),
        "unknown key": (_parse(penalty={"low": 1, "high": 2, "step": 1}), ValueError, "got a table with low"),
        "upside down": (_parse(penalty={"low": 2, "high": 1}), ValueError, "penalty: expected low below"),
        "log of zero": (_parse(penalty={"low": 0, "high": 1, "log": True}), ValueError, "penalty: low: exp"),
        "log": (_parse(penalty={"low": 0, "high": 1, "log": 1}), ValueError, "log: expected true or false"),
        "points": (_parse(penalty={"low": 0, "high": 1, "points": 1}), ValueError, "points: expected an int"),
        "low": (_parse(width={"low": 0.5, "high": 3}), ValueError, "width: low: expected an integer"),
        "nothing to search": (
            _parse(width=3),
            ValueError,
            "expected at least one field with choices or a range",
        ),
        "grid": (
            lambda: sampler_of(config(Path(), sampler="grid"), TWO),
            ValueError,
            "penalty: expected points = N with",
        ),
        "large grid": (
            lambda: sampler_of(config(Path(), sampler="grid", trials=13), SPACE),
            ValueError,
            "at most 12",
        ),
        **{
            name: (lambda field={name: value}: config(Path(), **field), ValueError, f"--{name}: expected")
            for name, value in {"trials": 0, "seeds": 0, "batch": 0, "patience": 0.0, "seed": -1}.items()
        },
    }
)
def test_bad_input_is_refused(call, error, pattern):
    refuses(call, error, pattern)


def test_command_refuses_bad_files(tmp_path):
    path = tmp_path / "space.toml"
    path.write_text("learning_rate = {")
    command = ("--experiment", "birth_death", "--space", path, "--trials", "2", "--out", tmp_path / "out")
    code, _, errors = call("sweep", *command)
    assert code == 2 and str(path) in errors and "expected valid TOML" in errors
    path.write_text("rate = 0.1")
    code, _, errors = call("sweep", *command)
    assert code == 2 and "got 'rate'" in errors and "alpha" in errors
    path.write_text("alpha = { low = 0, high = 1 }")
    code, _, errors = call("sweep", *command, "--storage", "nowhere")
    assert code == 2 and "--storage: expected the URL of a database, got 'nowhere'" in errors
    assert call("sweep", "--experiment", "birth_death", "--space", tmp_path / "none")[0] == 2


def test_help_names_every_option():
    code, printed, _ = call("sweep", "--help")
    assert code == 0
    assert all(re.search(rf"--{o.replace('_', '-')}\b", printed) for o in Config.__dataclass_fields__)
    assert all(name in printed for name in (*SWEEPABLES, *SAMPLERS))


def sweeps(name, **given):
    """Checks a space of an experiment as the command does before the first trial."""

    def check():
        space = parse_space(given, SWEEPABLES[name], "--space")
        settings = Config(name, Path("space.toml"))  # pyright: ignore[reportArgumentType]
        check_space(settings, space, SWEEPABLES[name])

    return check


RATE = {"low": 1e-3, "high": 1.0}
TOO_LARGE = r"expected a size that fits into .*\(out of memory"


@parametrize_cases(
    {
        "batch": (
            sweeps("microlearning", learning_rate=RATE, batch_size=5000),
            ValueError,
            "^--space: batch_size: expected at most 4000 images, got 5000",
        ),
        "a choice": (
            sweeps("microlearning", batch_size={"choices": [100, 5000]}),
            ValueError,
            "^--space: batch_size: expected at most 4000 images, got 5000",
        ),
        "the end of a range": (
            sweeps("decorrelation", batch_size={"low": 1, "high": 4001}),
            ValueError,
            "^--space: batch_size: expected at most 4000 images, got 4001",
        ),
        "two that do not fit": (
            sweeps("plasticity_transfer", width={"choices": [100, 20]}, cap={"choices": [10, 30]}),
            ValueError,
            "^--space: width: expected at least the cap of 30, got 20",
        ),
        "batch of points": (
            sweeps("plasticity_transfer", points={"low": 10, "high": 200}),
            ValueError,
            "^--space: points: expected at least a batch of 100, got 10 500",
        ),
        "data": (
            sweeps("microlearning", data={"choices": ["sample", "no"]}),
            ValueError,
            "^--space: data: exp",
        ),
        "sigma": (
            sweeps("microlearning", rule="node_perturbation", sigma={"choices": [0.1, 0]}),
            ValueError,
            "^--space: sigma: choices: expected a finite number > 0, got 0.0",
        ),
        "beyond float32": (
            sweeps("birth_death", alpha={"low": 0, "high": 1e39}),
            ValueError,
            "that float32 can",
        ),
        "huge integer": (
            sweeps("birth_death", alpha={"low": 0, "high": 10**400}),
            ValueError,
            "finite number",
        ),
        "beyond int32": (
            sweeps("birth_death", alpha=RATE, steps=2**31),
            ValueError,
            "^--space: steps: expected at",
        ),
        **{
            f"{size} of {name}": (
                sweeps(name, **{rate: RATE, size: huge}),
                ValueError,
                f"{size}: {TOO_LARGE}",
            )
            for name, rate, size, huge in (
                ("microlearning", "learning_rate", "hidden", 2_000_000_000),
                ("birth_death", "alpha", "units", {"low": 10, "high": 2_000_000_000}),
                ("plasticity_transfer", "learning_rate", "width", {"choices": [100, 10_000_000]}),
                ("symbolic_discriminator", "decay", "width", 2_000_000_000),
            )
        },
    }
)
def test_a_space_that_cannot_run_is_refused_before_the_first_trial(call, error, pattern):
    refuses(call, error, pattern)


def test_the_default_of_every_experiment_can_be_swept():
    for name, sweepable in SWEEPABLES.items():
        sweeps(name, **{next(iter(sweepable.traced)): RATE})()


def test_corners_are_all_values_that_can_come_together(monkeypatch):
    given = {"width": {"low": 2, "high": 9}, "kind": {"choices": ["round", "square"]}, "penalty": RATE}
    space = parse_space(given, toy(), "space")
    corners = [tuple(corner.values()) for corner in space.corners(toy().static)]
    assert corners == [(w, kind, "sample") for w in (2, 9) for kind in ("round", "square")]
    monkeypatch.setattr("experiments.sweep.space.MOST_CORNERS", 3)
    corners = {tuple(corner.values()) for corner in space.corners(toy().static)}
    assert corners == {(2, "round", "sample"), (9, "round", "sample"), (2, "square", "sample")}


# Programs


def test_256_learning_rates_compile_once(tmp_path, monkeypatch):
    traces = Counter()
    offered = SWEEPABLES["microlearning"]

    def make(static):
        program = offered.make(static)

        def advance(*arguments):
            traces[static["rule"]] += 1
            return program.advance(*arguments)

        return program._replace(advance=advance)

    rates = {"learning_rate": {"low": 1e-3, "high": 100.0, "log": True, "points": 256}}
    small = {"hidden": 10, "batch_size": 20, "epochs": 2}
    memory = optuna.storages.InMemoryStorage()
    monkeypatch.setattr(study_module, "storage_of", lambda config: memory)
    few = jax.tree.map(lambda a: a[:200], images("sample"))
    monkeypatch.setattr(microlearning_sweep, "images", lambda source: few)
    sweepable = offered._replace(make=make)
    space = parse_space({**rates, **small}, sweepable, "space")
    settings = config(tmp_path, sampler="grid", trials=256, batch=100, side_by_side=8, seeds=1)
    study = run(settings, space, sweepable)  # batches of 100, 100 and 56, some of whose trials are pruned
    assert traces == {"backprop": 1}
    assert sorted(values_of(study)) == pytest.approx(np.geomspace(1e-3, 100, 256))
    assert sum(trial.state == TrialState.PRUNED for trial in finished(study)) > 9


def test_groups_of_one_shape_and_scores_by_hand(tmp_path):
    traces = []
    space = parse_space(
        {"learning_rate": RATES, "width": {"choices": [1, 3]}}, toy(lambda: traces.append(1)), "space"
    )
    settings = config(tmp_path, sampler="grid", trials=24, batch=10, pruner="none")
    study = run(settings, space, toy(lambda: traces.append(1)))
    assert len(traces) == 2  # one program a width, though there are three batches
    assert len({(t.params["learning_rate"], t.params["width"]) for t in finished(study)}) == 24
    noise = [0.01 * float(jax.random.normal(key)) for key in jax.random.split(jax.random.key(0), 2)]
    for trial in finished(study):
        goal = -((np.log10(trial.params["learning_rate"]) + 2) ** 2)
        expected = [trial.params["width"] * (goal + of_seed) for of_seed in noise]
        assert trial.user_attrs["scores"] == pytest.approx(expected, abs=1e-5)
        assert trial.value == pytest.approx(np.median(expected), abs=1e-5)


def test_stopped_trials_cost_nothing_and_disturb_no_others():
    keys, rates = jax.random.split(jax.random.key(0), 2), np.geomspace(1e-4, 1, 10)
    programs = Programs(toy(), keys, 2)
    traced = {"learning_rate": rates, "penalty": np.zeros(10)}
    static = {"width": 1, "kind": "round"}
    whole = programs.run(static, traced, lambda chunk, trials, scores: np.zeros(len(trials), bool))
    seen, calls = [], []
    (runner,) = programs._runners.values()

    def advance(*arguments):
        calls.append(int(arguments[1]))
        return runner.advance(*arguments)

    programs._runners = dict.fromkeys(programs._runners, runner._replace(advance=advance))

    def odd(chunk, trials, scores):
        seen.append(trials.tolist())
        assert scores.shape == (len(trials), 2)
        return trials % 2 == 1 if chunk == 1 else trials > 2

    stopped = programs.run(static, traced, odd)
    assert seen == [list(range(10)), [0, 2, 4, 6, 8]]
    np.testing.assert_allclose(stopped[[0, 2]], whole[[0, 2]], rtol=1e-6)
    np.testing.assert_allclose(stopped[1::2], whole[1::2] / CHUNKS, rtol=1e-6)
    np.testing.assert_allclose(stopped[4::2], whole[4::2] * 2 / CHUNKS, rtol=1e-6)
    assert Counter(calls) == {0: 5, 1: 3, 2: 1}  # blocks of two


# Studies


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_asks_and_is_told(tmp_path, sampler):
    space = SPACE if sampler == "grid" else TWO
    halves = config(tmp_path / "halves", sampler=sampler, batch=4, trials=7, pruner="none")
    run(halves, space)
    study = run(config(halves.out, sampler=sampler, batch=4, trials=12, pruner="none"), space)
    states = Counter(trial.state for trial in study.trials)
    assert states == {TrialState.COMPLETE: 12}
    assert len(set(values_of(study))) == 12  # those of the second half are new
    if sampler in ("random", "grid"):  # whose draws do not depend on batches
        whole = run(config(tmp_path / "whole", sampler=sampler, batch=12, trials=12), space)
        assert values_of(whole) == values_of(study)
    if sampler == "grid":
        assert sorted(values_of(study)) == pytest.approx(np.geomspace(1e-4, 1, 12))


def test_tpe_and_cmaes_learn_from_what_they_are_told(tmp_path, monkeypatch):
    for sampler in ("tpe", "cmaes"):
        monkeypatch.setattr(study_module, "storage_of", lambda config: optuna.storages.InMemoryStorage())
        study = run(config(tmp_path / sampler, sampler=sampler, batch=8, trials=64), TWO)
        distances = np.abs(np.log10(values_of(study)) + 2)
        assert np.median(distances[-16:]) < 0.75 * np.median(distances[:16])


def test_pruning_stops_hopeless_trials(tmp_path):
    study = run(config(tmp_path, sampler="random", batch=8, trials=24), SPACE)
    pruned = [trial for trial in study.trials if trial.state == TrialState.PRUNED]
    assert all(trial.number >= 8 for trial in pruned) and len(pruned) >= 3  # the first batch is compared with
    assert all(max(trial.intermediate_values) < CHUNKS for trial in pruned)
    kept = [trial.values[0] for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert max(CHUNKS * trial.values[0] for trial in pruned) < np.median(kept) + 0.1
    assert all(len(trial.intermediate_values) == CHUNKS - 1 for trial in study.trials[:8])


def test_trials_that_are_not_finite_are_pruned(tmp_path):
    space = parse_space({"learning_rate": {"choices": [0.0, 0.01]}}, toy(), "space")
    study = run(config(tmp_path, sampler="grid", trials=2, pruner="none"), space)
    states = {trial.params["learning_rate"]: trial.state for trial in finished(study)}
    assert states == {0.0: TrialState.PRUNED, 0.01: TrialState.COMPLETE}


def test_trials_that_diverge_at_the_end_are_pruned_and_reported(tmp_path):
    space = parse_space({"learning_rate": RATES, "kind": "square"}, toy(), "space")
    study = run(config(tmp_path, trials=2, pruner="none"), space)
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED] * 2
    results = report.as_dataset(study, space, toy())
    assert report.figures(results) == {}
    assert report.table(report.rows(results)) == "2 trials, 2 of them stopped early"


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_score_of_a_run_that_diverged_is_nan(loss):
    assert np.isnan(while_finite(jax.numpy.float32(0.1), jax.numpy.array([1.0, loss])))
    assert while_finite(jax.numpy.float32(0.1), jax.numpy.array([1.0, 3e38])) == np.float32(0.1)


def test_a_loss_that_is_not_finite_stays_so():
    sweepable, sizes = SWEEPABLES["birth_death"], {"steps": 10, "units": 4, "batch_size": 5}
    static = {k: v for k, v in {**sweepable.defaults(), **sizes}.items() if k in sweepable.static}
    traced = {"alpha": np.ones(2), "learning_rate": np.array([1e-3, 1e30])}
    programs = Programs(sweepable, jax.random.split(jax.random.key(0), 2), 2)
    scores = programs.run(static, traced, lambda chunk, trials, scores: np.zeros(len(trials), bool))
    assert np.isfinite(scores[0]).all() and not np.isfinite(scores[1]).any()


@pytest.mark.parametrize("ends", [(np.inf, 3e38), (1.0, np.inf), (-3e38, 3e38)])
def test_a_report_draws_what_is_finite(ends):
    medians = np.array([ends[0] if np.isfinite(ends[0]) else 1.0, 2.0, np.nan])
    results = xr.Dataset(
        {
            "score": (("trial", "seed"), np.array([[1.0, 1.0], [2.0, 2.0], [np.nan, np.inf]])),
            "median": ("trial", medians),
            "low": ("trial", np.array([1.0, 2.0, np.nan])),
            "high": ("trial", np.array([ends[1], np.inf, np.nan])),
            "complete": ("trial", [True, True, False]),
            "importance": ("parameter", [np.nan]),
            "rate": ("trial", [0.1, 0.2, 0.3]),
        },
        {"trial": [0, 1, 2], "seed": [0, 1], "parameter": ["rate"]},
        {"objective": "loss", "direction": "minimize", "fixed": "{}", "logarithmic": "[]"},
    )
    found = harness.without_nan(report.rows(results))
    assert "2 .. -" in report.table(found) and json.dumps(found, allow_nan=False)
    for figure in report.figures(results).values():
        figure.savefig(io.BytesIO(), format="png", dpi=20)
        plt.close(figure)


def test_median_and_interval_by_hand():
    assert summary(np.array([5.0, 1, 3, 2, 4, 6, 8, 7, 9, 10])) == (5.5, 2.0, 9.0)  # ranks 2 and 9 of 10
    assert summary(np.array([3.0, 1.0])) == (2.0, 1.0, 3.0)
    assert summary(np.array([1.0, 2, np.inf]))[0] == 2.0
    assert np.isnan(summary(np.array([1.0, np.nan, 2]))).all()


def test_another_configuration_of_a_study_is_refused(tmp_path):
    run(config(tmp_path, trials=1), SPACE)
    with pytest.raises(ValueError, match=r"--study: expected one of this.*seeds: 2 there, 3 here"):
        run(config(tmp_path, trials=1, seeds=3), SPACE)


# The journal


RECORD = {"op_code": 3, "worker_id": "one", "value": "ä"}


@pytest.mark.parametrize(
    "left", [b"", b'{"op_code": 7, "wor', b"\xff\xfe", b"\n\n", b"\n  \n{", b"x" * 10_000]
)
def test_no_record_is_appended_to_what_a_dead_worker_left(tmp_path, left):
    path = tmp_path / "journal.log"
    first, other = Journal(path), Journal(path)
    first.append_logs([RECORD, {**RECORD, "value": 1}])
    with path.open("ab") as file:
        file.write(left)
    assert list(other.read_logs(0)) == [RECORD, {**RECORD, "value": 1}]
    first.append_logs([{**RECORD, "value": 2}])
    for journal in (first, other, Journal(path)):
        assert [record["value"] for record in journal.read_logs(1)] == [1, 2]
        assert [record["value"] for record in journal.read_logs(2)] == [2]
        assert list(journal.read_logs(3)) == []
        assert len(list(journal.read_logs(0))) == 3


@pytest.mark.parametrize("line", ["garbage", "{}", "[1]", "3", '{"op_code": 7, "wor{"op_code":1}'])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    path = tmp_path / "journal.log"
    Journal(path).append_logs([RECORD])
    with path.open("a") as file:
        file.write(f"\n{line}\n")
    Journal(path).append_logs([RECORD])
    with pytest.raises(ValueError, match=r"journal\.log:3: expected a record of a study, got '") as raised:
        list(Journal(path).read_logs(0))
    assert line[:20] in str(raised.value)


def test_a_study_goes_on_after_a_torn_record(tmp_path):
    run(config(tmp_path, trials=2), SPACE)
    with (tmp_path / "journal.log").open("ab") as journal:
        journal.write(b'{"op_code": 7, "wor')
    for trials in (4, 4, 5):
        assert len(finished(run(config(tmp_path, trials=trials), SPACE))) == trials


def test_a_sweep_that_runs_out_of_memory_gives_its_trials_back(tmp_path, monkeypatch):
    def fail(*arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 6272000000000 bytes.")

    monkeypatch.setattr(Programs, "run", fail)
    with pytest.raises(ValueError, match=r"--space: expected sizes that fit .*width = 1 \(out of memory\)"):
        run(config(tmp_path, trials=2), SPACE)
    monkeypatch.undo()
    assert len(finished(run(config(tmp_path, trials=2), SPACE))) == 2


# Workers


def sees_late(monkeypatch, worker, *old):
    """Lets a worker see the study as it was before others changed it."""
    looks, look = list(old), worker._trials
    monkeypatch.setattr(worker, "_fail_dead", lambda: None)
    monkeypatch.setattr(worker, "_trials", lambda: looks.pop(0) if looks else look())


def counting(study):
    return Counter(trial.state for trial in study.get_trials())


def test_trials_of_a_dead_worker_are_taken_up(tmp_path, monkeypatch):
    first, second = sqlite(tmp_path), sqlite(tmp_path)
    dead = Worker(first, SPACE, 6, 60.0)
    lost = [trial.params for trial in dead.claim(4)]  # and no sign of life from now on
    with Worker(second, SPACE, 6, 60.0) as worker:
        assert len(worker.claim(10)) == 2  # what is left
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + 61)
        mine = worker.claim(10)
        assert [trial.params for trial in mine][2:] == lost
        assert len(worker.claim(10)) == 6  # the same, none twice
        for trial in worker.claim(10):
            worker.tell(trial, 1.0, [1.0])
        assert not worker.claim(10)
    assert counting(second) == {TrialState.COMPLETE: 6, TrialState.FAIL: 4}
    # The first was not dead but slow: what it tells comes too late.
    for trial in list(dead._mine.values()):
        dead.report(trial, 1, 5.0)
        dead.tell(trial, 5.0, [5.0])
    assert {trial.value for trial in finished(second)} == {1.0} and len(finished(first)) == 6


def test_trials_of_a_live_worker_are_left_alone(tmp_path):
    with Worker(sqlite(tmp_path), SPACE, 6, 2.0) as one, Worker(sqlite(tmp_path), SPACE, 6, 2.0) as other:
        assert len(one.claim(4)) == 4
        time.sleep(2.5)
        assert len(other.claim(10)) == 2 and len(other.claim(10)) == 2
    study = sqlite(tmp_path)
    assert counting(study) == {TrialState.FAIL: 6}  # both gave back what they had
    with Worker(study, SPACE, 6, 60.0) as third:
        assert {trial.params["learning_rate"] for trial in third.claim(10)} == {
            trial.params["learning_rate"] for trial in study.get_trials()[:6]
        }


def test_those_that_claim_too_much_at_once_drop_it(tmp_path, monkeypatch):
    one, other = Worker(sqlite(tmp_path), SPACE, 6, 60.0), Worker(sqlite(tmp_path), SPACE, 6, 60.0)
    before = other._trials()
    assert len(one.claim(4)) == 4
    sees_late(monkeypatch, other, before, before)
    assert len(other.claim(6)) == 2
    states = counting(sqlite(tmp_path))
    assert states == {TrialState.RUNNING: 6, TrialState.FAIL: 4}
    assert not one._take_up(one._trials(), 10)  # nobody takes up what was dropped


def test_those_that_take_up_the_same_at_once_drop_it(tmp_path, monkeypatch):
    with Worker(sqlite(tmp_path), SPACE, 6, 60.0) as gone:
        gone.claim(2)
    one, other = Worker(sqlite(tmp_path), SPACE, 6, 60.0), Worker(sqlite(tmp_path), SPACE, 6, 60.0)
    failed = other._trials()
    assert len(one.claim(2)) == 2
    sees_late(monkeypatch, other, failed)
    assert other.claim(2) == []
    running = [trial for trial in one._trials() if trial.state == TrialState.RUNNING]
    assert [trial.user_attrs["origin"] for trial in running] == [0, 1]
    assert {trial.number for trial in running} == set(one._mine)


def test_a_trial_that_no_worker_survives_is_pruned(tmp_path):
    for _ in range(3):
        with Worker(sqlite(tmp_path), SPACE, 1, 0.05) as worker:
            assert len(worker.claim(1)) == 1
            worker._mine.clear()  # as if it were killed
        time.sleep(0.1)
    with Worker(sqlite(tmp_path), SPACE, 1, 0.05) as worker:
        assert worker.claim(1) == []
    assert counting(sqlite(tmp_path)) == {TrialState.FAIL: 2, TrialState.PRUNED: 1}


def test_two_workers_finish_what_a_killed_one_began(tmp_path):
    space = tmp_path / "space.toml"
    space.write_text("learning_rate = { low = 1e-4, high = 1.0, log = true }\nwidth = { choices = [1, 2] }")
    url = f"sqlite:///{tmp_path / 'study.db'}"
    common = ("--space", space, "--trials", 24, "--batch", 4, "--seeds", 2, "--storage", url)
    common = (*common, "--sampler", "random", "--pruner", "none", "--patience", 3)
    marker = tmp_path / "hanging"
    killed = start(*common, "--out", tmp_path / "killed", marker=marker, batches=1, hanging=600)
    wait_for(marker, killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    marker.unlink()
    other = start(*common, "--out", tmp_path / "one", marker=marker, hanging=0.5)
    wait_for(marker, other)
    here = run_here(*common, "--out", tmp_path / "two", delay=0.2)
    there = other.communicate(timeout=200)
    assert (other.returncode, here[0]) == (0, 0), (there, here)
    printed = [there, here[1:]]

    study = optuna.load_study(study_name="microlearning", storage=url)
    trials = study.get_trials()
    done = [trial for trial in trials if trial.state in FINISHED]
    assert len(done) == 24 and not any(t.state in (TrialState.RUNNING, TrialState.WAITING) for t in trials)
    assert len({t.params["learning_rate"] for t in done}) == 24  # none was done twice
    lost = [t for t in trials if t.state == TrialState.FAIL and "dropped" not in t.user_attrs]
    again = {t.user_attrs["origin"]: t.params for t in done if "origin" in t.user_attrs}
    assert lost and all(again[trial.number] == trial.params for trial in lost)
    names = {trial.user_attrs["worker"] for trial in done}
    assert len(names) >= 2  # that of the killed one, whose first batch was finished, among them
    assert [trial.number for trial in done[:4]] == [0, 1, 2, 3] and len(lost) == 4
    for name, (output, errors) in zip(("one", "two"), printed, strict=True):
        out = tmp_path / name
        files = {"config.json", "results.nc", "summary.json"}
        figures = {f"{n}.png" for n in ("history", "importance", "parallel_coordinates", "slices")}
        assert {path.name for path in out.iterdir()} == files | figures
        assert "24 trials" in output and "24/24" in errors
        results = harness.read_dataset(out / "results.nc")
        assert results.score.dims == ("trial", "seed") and results.score.shape == (24, 2)
        np.testing.assert_allclose(results["median"], np.median(results.score, axis=1), rtol=1e-5)
        rows = json.loads((out / "summary.json").read_text())["rows"]
        assert rows[1]["median"] == pytest.approx(float(results["median"].max()))
        shares = {row["parameter"]: row["importance"] for row in rows if "parameter" in row}
        assert shares["learning_rate"] > 0.5 and sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "small"),
    [
        ("birth_death", {"steps": 10, "units": 4, "batch_size": 5, "problem": "mixture"}),
        ("decorrelation", {"updates": 5, "batch_size": 4}),
        ("plasticity_transfer", {"epochs": 1, "points": 100, "width": 10, "cap": 5, "batch_size": 20}),
        ("symbolic_discriminator", {"epochs": 10, "width": 4, "latents": 1, "iterations": 1}),
    ],
)
def test_every_experiment_can_be_swept(name, small):
    sweepable = SWEEPABLES[name]
    static = {k: v for k, v in {**sweepable.defaults(), **small}.items() if k in sweepable.static}
    traced = {k: np.array([v, 5 * v]) for k, v in sweepable.traced.items()}
    programs = Programs(sweepable, jax.random.split(jax.random.key(0), 2), 2)
    scores = programs.run(static, traced, lambda chunk, trials, scores: np.zeros(len(trials), bool))
    assert scores.shape == (2, 2) and np.isfinite(scores).all()
    assert (scores[0] != scores[1]).any() or sweepable.direction == "maximize"
