"""Faults that "A smaller house" mends, in ensembles and around runs, as tests of calls and commands."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest

pytestmark = [
    pytest.mark.xfail(strict=True, raises=AssertionError, reason="mended by issue 20, 'A smaller house'"),
    pytest.mark.usefixtures("as_a_user_sees_it"),
]

ROOT = Path(__file__).parents[1]
KEYS = jax.random.split(jax.random.key(0), 4)


# --- runs

RUN = (
    "experiments.birth_death",
    *("--problems", "planted", "--schemes", "gd", "--seeds", "1", "--records", "5", "--units", "6"),
    *("--teacher-units", "2", "--features", "4", "--batch-size", "10", "--test-points", "50"),
)
"""A small run; how long it is stands apart."""
SHORT, LONG = ("--steps", "30"), ("--steps", "4000000")
FAILS = ("experiments.plasticity_transfer", "--data")
"""A run of images from the folder that follows."""
RESUME = ("--resume",)
UNDER_WAY = re.compile(r"\d+/\d+ \[")
"""What a bar of progress shows."""


def start(out: Path, errors: Path, *arguments: str) -> subprocess.Popen:
    """Starts `python -m MODULE ...` with what it says in a file."""
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "COLUMNS": "200",
    }
    with errors.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", *arguments, "--out", str(out)],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=file,
        )


class End(NamedTuple):
    """How a command ended; no code if it was stopped because it had not."""

    code: int | None
    errors: str

    @property
    def message(self) -> str:
        """The last line."""
        return (self.errors.replace("\r", "\n").strip().splitlines() or [""])[-1]


def run(out: Path, *arguments: str) -> End:
    """Runs a command to its end, or stops it after two minutes."""
    errors = out.with_name(f"{out.name}.errors")
    process = start(out, errors, *arguments)
    try:
        code = process.wait(timeout=120)
    except subprocess.TimeoutExpired:
        code = None
        process.kill()
        process.wait()
    return End(code, errors.read_text())


def wait(condition: Callable[[], Any], seconds: float = 120.0) -> None:
    """Waits for what is to come."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing for {seconds} s")
        time.sleep(0.05)


def files_of(out: Path) -> list[Path]:
    """What a run has written so far, but for its configuration, compiled programs and what is hidden."""
    found = (path for path in out.rglob("*") if path.is_file() and path != out / "config.json")
    names = ((path, path.relative_to(out).parts) for path in found)
    return [path for path, parts in names if "compiled" not in parts and not parts[-1].startswith(".")]


def assert_refused(end: End, *named: str) -> None:
    """One line that names all of it, in the place of a traceback."""
    assert "Traceback" not in end.errors, end.errors
    assert end.code == 2, end
    assert all(name in end.message for name in named), end.message


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has ended."""
    out = tmp_path_factory.mktemp("finished") / "out"
    end = run(out, *RUN, *SHORT)
    if end.code != 0 or not (out / "config.json").is_file() or not files_of(out):
        raise RuntimeError(f"the run to be damaged did not end well: {end}")
    return out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of that folder, without the last files of the run: so it has to read its parts."""
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    for path in files_of(out):
        if path.suffix in (".json", ".png", ".pdf"):
            path.unlink()
    return out


class Contended(NamedTuple):
    """A run that was killed, its process, and how another ended that was started in its folder meanwhile."""

    out: Path
    first: int
    second: End


@pytest.fixture(scope="module")
def contended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Contended]:
    """Two processes in one folder: the second is stopped where it runs, the first after a checkpoint."""
    folder = tmp_path_factory.mktemp("contended")
    out, errors = folder / "out", (folder / "first.errors", folder / "second.errors")
    first = start(out, errors[0], *RUN, *LONG)
    second = None
    try:
        wait(lambda: UNDER_WAY.search(errors[0].read_text()) or first.poll() is not None)
        second = start(out, errors[1], *RUN, *LONG, *RESUME)
        wait(lambda: UNDER_WAY.search(errors[1].read_text()) or second.poll() is not None)
        code = second.poll()
        second.kill()
        second.wait()
        wait(lambda: files_of(out) or first.poll() is not None)
        time.sleep(2.0)  # until all files of a checkpoint are there
        if first.poll() is not None:
            raise RuntimeError(f"the run to be killed ended by itself: {errors[0].read_text()}")
        first.kill()
        first.wait()
        yield Contended(out, first.pid, End(code, errors[1].read_text()))
    finally:
        for process in (first, second):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()


def test_second_process_in_a_folder_is_told_who_is_there(contended: Contended) -> None:
    assert_refused(contended.second, "--out", str(contended.out), str(contended.first))


def test_checkpoint_that_is_damaged_is_named(contended: Contended, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(contended.out, out)
    for path in files_of(out):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert_refused(run(out, *RUN, *LONG, *RESUME), str(out), "checkpoint", "delete")


def test_part_that_is_damaged_is_named(copied: Path) -> None:
    damaged = files_of(copied)
    for path in damaged:
        path.write_bytes(b"garbage")
    end = run(copied, *RUN, *SHORT, *RESUME)
    assert_refused(end, "delete")
    assert any(str(path) in end.message for path in damaged), end.message


@pytest.mark.parametrize("content", [b"null", b"\xff\xfe{"], ids=["null", "not text"])
def test_configuration_that_is_damaged_is_named(tmp_path: Path, content: bytes) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_bytes(content)
    assert_refused(run(out, *RUN, *SHORT, *RESUME), str(out / "config.json"), "expected")
