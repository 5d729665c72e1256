"""A folder is one process's at a time, damaged files are named, and a kill at any moment loses nothing."""

import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest
import xarray as xr

from experiments import folders, harness
from experiments.settings import parse
from tests.command_line import PROGRAM, call, run, start, started

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

NAME = "birth_death"
SMALL = (
    *("--problems", "planted", "--schemes", "gd", "--seeds", "1", "--records", "5", "--units", "6"),
    *("--teacher-units", "2", "--features", "4", "--batch-size", "10", "--test-points", "50"),
)
SHORT, LONG = (*SMALL, "--steps", "30"), (*SMALL, "--steps", "4000000")


def assert_refused(end, *named):
    """One line that names all of it, in the place of a traceback."""
    code, _, errors = end
    message = (errors.replace("\r", "\n").strip().splitlines() or [""])[-1]
    assert "Traceback" not in errors and code == 2, errors
    assert all(name in message for name in named), message


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that has ended."""
    out = tmp_path_factory.mktemp("finished") / "out"
    code, _, errors = run(NAME, *SHORT, "--out", out, drawn=False)
    assert code == 0, errors
    return out


@pytest.fixture(scope="module")
def contended(tmp_path_factory):
    """The folder of a run that was killed, its process, and the end of a second one in it meanwhile."""
    out = tmp_path_factory.mktemp("contended") / "out"
    with started(out / "checkpoints" / "planted-gd", NAME, *LONG, "--out", out) as process:
        second = call(NAME, *LONG, "--out", out, "--resume")
    return out, process.pid, second


def test_second_process_in_a_folder_is_told_who_is_there(contended):
    out, first, second = contended
    assert_refused(second, f"--out: expected a folder of no other run, got {out}, held by process {first} on")
    assert " since " in second[2]


def test_lock_of_a_killed_process_is_taken_over(contended, tmp_path):
    out = shutil.copytree(contended[0], tmp_path / "out")
    assert (out / ".lock").exists()
    with folders.claims():
        harness.open_folder(out, folders.read_config(out) or {}, resume=True)
        assert str(os.getpid()) in (out / ".lock").read_text()
    assert not (out / ".lock").exists() and (out / "config.json").exists()


SHARES = """
import sys
from pathlib import Path
from experiments import folders
with folders.claims():
    folders.open_folder(Path(sys.argv[1]), {"seeds": 1}, resume=True, shared=True)
"""


def test_workers_share_a_folder_that_is_no_other_run_s(tmp_path):
    def worker():
        return start(SHARES, tmp_path, stderr=subprocess.PIPE)

    with folders.claims():
        harness.open_folder(tmp_path, {"seeds": 1}, resume=True, shared=True)
        ended = worker()
        assert ended.communicate()[1] == "" and ended.returncode == 0 and (tmp_path / ".lock").exists()
    assert not (tmp_path / ".lock").exists()
    with folders.claims():
        harness.open_folder(tmp_path, {"seeds": 1}, resume=True)
        assert f"held by process {os.getpid()} on" in worker().communicate()[1]


def test_checkpoint_that_is_damaged_is_named(contended, tmp_path):
    out = shutil.copytree(contended[0], tmp_path / "out")
    folder = out / "checkpoints" / "planted-gd"
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert_refused(run(NAME, *LONG, "--out", out, "--resume"), f"expected a checkpoint in {folder}", "delete")


def test_part_that_is_damaged_is_named(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    path = out / "parts" / "planted-gd.nc"
    path.write_bytes(b"garbage")
    end = run(NAME, *SHORT, "--out", out, "--resume", drawn=False)
    assert_refused(end, f"expected results in {path}", "delete")
    path.unlink()
    code, _, errors = run(NAME, *SHORT, "--out", out, "--resume", drawn=False)
    assert code == 0, errors


@pytest.mark.parametrize(
    "content", [b"null", b"\xff\xfe{", b"[1]", b""], ids=["null", "text", "list", "empty"]
)
def test_configuration_that_is_damaged_is_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    end = call(NAME, *SHORT, "--resume", "--out", tmp_path)
    assert_refused(end, f"expected a configuration in {tmp_path / 'config.json'}", "delete")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("found", [False, True], ids=["new folder", "empty folder"])
def test_run_that_fails_before_it_starts_leaves_the_folder_as_it_was(tmp_path, found):
    out = tmp_path / "out"
    if found:
        out.mkdir()
    with pytest.raises(ValueError, match="no memory"), folders.claims():
        harness.open_folder(out, {"seeds": 1}, resume=False)
        raise ValueError("no memory")
    assert out.exists() == found and not (found and any(out.iterdir()))
    with pytest.raises(KeyboardInterrupt), folders.claims():
        harness.open_folder(out, {"seeds": 1}, resume=False)
        raise KeyboardInterrupt  # `--resume` is promised
    assert [path.name for path in out.iterdir()] == ["config.json"]
    with pytest.raises(ValueError, match="late"), folders.claims():
        harness.open_folder(out, {"seeds": 1}, resume=True)
        (out / "part.nc").touch()
        raise ValueError("late")
    assert {path.name for path in out.iterdir()} == {"config.json", "part.nc"}


def test_run_that_cannot_read_its_images_leaves_no_claim(tmp_path):
    for folder in ("images", "digits"):
        end = call("plasticity_transfer", "--data", tmp_path / folder, "--out", tmp_path / "out")
        assert_refused(end, str(tmp_path / folder))
        assert not (tmp_path / "out").exists()


def test_resume_reads_the_configuration_of_the_run(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    before = (out / "config.json").read_bytes()
    code, _, errors = run(NAME, "--resume", "--out", out, drawn=False)
    assert code == 0 and (out / "config.json").read_bytes() == before, errors
    end = call(NAME, "--resume", "--out", out, "--seeds", "2", "--units", "6")
    assert_refused(end, "another configuration (seeds: 1 there, 2 here)")
    assert_refused(call("microlearning", "--resume", "--out", out), "another configuration")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("birth_death", {}),
        ("birth_death", {"steps": 30, "problems": ("planted",), "preset": "seed"}),
        ("microlearning", {"rules": ("backprop",), "scale": "gradient", "drops": (2,)}),
        ("plasticity_transfer", {"points": (300, 100), "preset": "seed", "data": "sample"}),
        ("decorrelation", {"rules": ("backprop",), "updates": 10}),
        ("symbolic_discriminator", {"seeds": 2}),
    ],
)
def test_every_configuration_is_read_again(name, options, tmp_path, monkeypatch):
    config_of = import_module(f"experiments.{name}.config").Config
    config = config_of(out=tmp_path, **options)
    folders.write_json(tmp_path / "config.json", config.deciding())
    monkeypatch.setattr("sys.argv", ["command", "--resume", "--out", str(tmp_path)])
    assert parse(config_of, "command").deciding() == config.deciding()


KILLED = {
    "birth_death": (*SMALL[2:], "--problems", "planted", "--schemes", "gd", "clone", "--steps", "300000"),
    "microlearning": (
        *("--rules", "backprop", "node_perturbation", "--hidden", "20", "--seeds", "2", "--epochs", "12"),
        *("--snr-images", "10", "--draws", "4", "--test-images", "50"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_kills_and_interrupts_at_random_moments_change_nothing(tmp_path, name):
    draw = random.Random(name)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    program = PROGRAM.format(name=name)

    def process(folder: Path):
        return start(program, *KILLED[name], "--resume", "--out", folder)

    def end(process: subprocess.Popen, timeout: float) -> int:
        process.communicate(timeout=timeout)
        return process.returncode

    began = time.monotonic()
    assert end(process(whole), 600) == 0
    seconds = time.monotonic() - began
    for stop in (signal.SIGKILL, signal.SIGINT) * 5:
        killed = process(out)
        with suppress(subprocess.TimeoutExpired):
            end(killed, draw.uniform(0.0, seconds))
        killed.send_signal(stop)
        assert end(killed, 60) in (0, 130, -signal.SIGKILL, -signal.SIGINT)
    assert end(process(out), 600) == 0
    same, expected = (harness.read_dataset(folder / "results.nc") for folder in (out, whole))
    timed = [name for name in expected.variables if "seconds" in str(name)]
    xr.testing.assert_identical(same.drop_vars(timed), expected.drop_vars(timed))
