"""A folder is one process's at a time, damaged files are named, and a kill at any moment loses nothing."""

import json
import os
import random
import shutil
import signal
import time
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from subprocess import TimeoutExpired

import pytest
import xarray as xr

from experiments import folders, processes, terminal
from experiments.settings import parse
from tests.command_line import BIRTH_DEATH, EXPERIMENT, ended, run, start

SHORT = ("birth_death", *BIRTH_DEATH.split(), "--problems", "planted", "--schemes", "clone")


def assert_refused(end, *named):
    """One line that names all of it, in the place of a traceback."""
    code, _, errors = end
    message = (errors.replace("\r", "\n").strip().splitlines() or [""])[-1]
    assert "Traceback" not in errors and code == 2, errors
    assert all(name in message for name in named), message


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that has ended."""
    out = tmp_path_factory.mktemp("finished")
    code, _, errors = run(*SHORT, "--out", out, "--resume", drawn=False)
    assert code == 0 and f"--resume: {out} holds no run; starting a new one\n" in errors, errors
    return out


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of the same run, stopped at its first checkpoint."""
    out = tmp_path_factory.mktemp("stopped") / "out"
    code, _, errors = run(*SHORT, "--out", out, interrupted_in=out / "checkpoints" / "planted-clone")
    assert code == 130 and "--resume to continue" in errors and not (out / "results.nc").exists()
    assert "no run" not in errors
    return out


def test_stopped_run_goes_on_to_the_same_results(stopped, finished, tmp_path):
    out = shutil.copytree(stopped, tmp_path / "out")
    assert_refused(run(*SHORT, "--out", out), "holds a run already", "--resume")
    before = (out / "config.json").read_bytes()
    code, _, errors = run("birth_death", "--resume", "--out", out, drawn=False)
    assert code == 0 and (out / "config.json").read_bytes() == before and "no run" not in errors, errors
    same, expected = (folders.read_dataset(folder / "results.nc") for folder in (out, finished))
    xr.testing.assert_identical(same, expected)


@pytest.mark.parametrize(
    ("run_of", "damaged", "named", "content"),
    [
        ("stopped", "checkpoints/planted-clone", "a checkpoint", None),
        ("finished", "parts/planted-clone.nc", "results", None),
        ("finished", "config.json", "a configuration", b"null"),
        ("finished", "config.json", "a configuration", b"\xff\xfe{"),
    ],
)
def test_damaged_files_are_named(run_of, damaged, named, content, request, tmp_path):
    """Files cut in half, or with other content."""
    out = shutil.copytree(request.getfixturevalue(run_of), tmp_path / "out")
    path = out / damaged
    for file in (each for each in (path, *path.rglob("*")) if each.is_file()):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if content is None else content)
    end = run(*SHORT, "--out", out, "--resume", drawn=False)
    assert_refused(end, f"expected {named} in {path}", "delete")


def test_results_that_cannot_be_written_name_the_folder(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    shutil.rmtree(out / "parts")
    (out / "parts").touch()
    end = run("birth_death", "--resume", "--out", out, drawn=False)
    assert_refused(end, f"--out: expected a folder that can be written to, got {out} (File exists)")


def test_all_processes_but_the_first_are_silent(finished, tmp_path, monkeypatch):
    out = shutil.copytree(finished, tmp_path / "out", ignore=shutil.ignore_patterns("results.nc"))
    monkeypatch.setattr(processes, "is_first", lambda: False)
    assert run("birth_death", "--resume", "--out", out) == (0, "", "")
    assert not (out / "results.nc").exists()


def test_another_configuration_is_refused(finished):
    end = run("birth_death", "--resume", "--out", finished, "--seeds", "2", "--units", "6")
    assert_refused(end, "another configuration (seeds: 3 before, 2 now)")
    assert_refused(run("symbolic_discriminator", "--resume", "--out", finished), "another configuration")


def test_every_configuration_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["command", "--resume", "--out", str(tmp_path)])
    for name, options in {
        "birth_death": {"steps": 30, "problems": ("planted",), "preset": "seed"},
        "microlearning": {"rules": ("backprop",), "scale": "gradient", "drops": (2,)},
        "plasticity_transfer": {"points": (300, 100), "preset": "seed", "data": "sample"},
        "decorrelation": {"rules": ("backprop",), "updates": 10},
        "symbolic_discriminator": {"seeds": 2},
    }.items():
        config = import_module(f"experiments.{name}.config").Config
        deciding = config(out=tmp_path, **options).deciding()
        folders.write_json(tmp_path / "config.json", deciding)
        assert parse(config, "command").deciding() == deciding, name


HOLDS = """
import sys
import time
from pathlib import Path
from experiments import folders
with folders.claims():
    for name in ("alone", "shared"):
        folders.open_folder(Path(sys.argv[1], name), {"seeds": 1}, resume=True, shared=name == "shared")
    print("held", flush=True)
    time.sleep(600)
"""


def test_folder_is_one_process_s_or_its_workers_and_a_killed_one_loses_it(tmp_path):
    def claim(name, shared=False):
        with folders.claims():
            folders.open_folder(tmp_path / name, {"seeds": 1}, resume=True, shared=shared)
            return (tmp_path / name / ".lock").read_text()

    first = start(HOLDS, tmp_path)
    try:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        for name, shared in (("alone", False), ("alone", True), ("shared", False)):
            told = f"^--out: expected .* not in use, got .*{name}, in use by process {first.pid} on .* since "
            with pytest.raises(folders.FolderError, match=told):
                claim(name, shared)
        claim("shared", shared=True)
    finally:
        first.kill()
        first.communicate()
    for name in ("alone", "shared"):
        lock = tmp_path / name / ".lock"
        assert lock.exists()  # the other's still
        assert str(os.getpid()) in claim(name) and not lock.exists()
        assert (tmp_path / name / "config.json").exists()


@pytest.mark.parametrize("found", [False, True], ids=["new folder", "empty folder"])
def test_run_that_fails_before_it_starts_leaves_the_folder_as_it_was(tmp_path, found):
    out = tmp_path / "out"

    def left_by(error, part=None):
        with pytest.raises(type(error)), folders.claims():
            folders.open_folder(out, {"seeds": 1}, resume=part is not None)
            if part:
                (out / part).touch()
            raise error
        return {path.name for path in out.iterdir()} if out.exists() else None

    if found:
        out.mkdir()
    assert left_by(ValueError("no memory")) == (set() if found else None)
    assert left_by(KeyboardInterrupt("stop")) == {"config.json"}  # `--resume` is promised
    (out / "config.json").unlink()
    assert left_by(ValueError("late"), "part.nc") == {"config.json", "part.nc"}


def test_folder_of_a_run_killed_at_its_start_is_taken_and_one_with_other_files_is_refused(tmp_path):
    (tmp_path / ".config.json.123").write_text("{")
    with folders.claims():
        folders.open_folder(tmp_path, {"seeds": 2}, resume=True)
    assert json.loads((tmp_path / "config.json").read_text()) == {"seeds": 2}
    (tmp_path / "config.json").rename(tmp_path / "thesis.tex")
    with pytest.raises(folders.FolderError, match="expected an empty folder"), folders.claims():
        folders.open_folder(tmp_path, {}, resume=True)


def test_workers_that_start_together_share_a_new_folder(tmp_path, monkeypatch):
    config = tmp_path / "config.json"
    # Another worker writes it as soon as this one has looked.
    monkeypatch.setattr(folders, "read_config", lambda out: config.write_text("{}") and None)
    with folders.claims():
        folders.open_folder(tmp_path, {}, resume=True, shared=True)
    assert config.exists()


def test_half_written_files_are_never_in_place(tmp_path):
    def fail(beside: Path) -> None:
        beside.write_text("half")
        raise KeyboardInterrupt

    folders.write_json(tmp_path / "file", [1])
    with pytest.raises(KeyboardInterrupt):
        folders.write_whole(tmp_path / "file", fail)
    assert json.loads((tmp_path / "file").read_text()) == [1]


@pytest.mark.slow
def test_kills_and_interrupts_at_random_moments_change_nothing(tmp_path):
    options = (
        *("--rules", "backprop", "node_perturbation", "--hidden", "20", "--seeds", "2", "--epochs", "12"),
        *("--snr-images", "10", "--draws", "4", "--test-images", "50", "--resume", "--out"),
    )
    draw, whole, out = random.Random(0), tmp_path / "whole", tmp_path / "killed"
    process, began = partial(start, EXPERIMENT.format(name="microlearning"), *options), time.monotonic()
    assert ended(process(whole), 600)[0] == 0
    seconds = time.monotonic() - began
    for stop in (signal.SIGKILL, signal.SIGINT) * 5:
        killed = process(out)
        with suppress(TimeoutExpired):
            killed.communicate(timeout=draw.uniform(0.0, seconds))
        killed.send_signal(stop)
        assert ended(killed, 60)[0] in (0, 130, -signal.SIGKILL, -signal.SIGINT)
    assert ended(process(out), 600)[0] == 0
    same, expected = (folders.read_dataset(folder / "results.nc") for folder in (out, whole))
    timed = [name for name in expected.variables if "seconds" in str(name)]
    xr.testing.assert_identical(same.drop_vars(timed), expected.drop_vars(timed))


class KillsItself:
    def __del__(self) -> None:  # it meets Ctrl-C, as callbacks of the garbage collector may
        raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupt_that_python_ignores_is_sent_again():
    handler = signal.signal(signal.SIGINT, lambda *_: None)  # a program's own
    try:
        with pytest.raises(KeyboardInterrupt), terminal.interruptible():
            KillsItself()
            for _ in range(100):  # an interrupt that is sent by a thread wakes no sleep
                time.sleep(0.1)
    finally:
        signal.signal(signal.SIGINT, handler)
