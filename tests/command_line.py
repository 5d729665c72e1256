"""Experiments as a user starts them; those that run are in a process of their own, which can be killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

from experiments import harness

ROOT = Path(__file__).parents[1]
# What one process compiles, the others read.
CACHE = {
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
PROGRAM = """
import gc
import sys
gc.set_threshold(100_000)
from experiments import checkpoints
checkpoints.SECONDS_BETWEEN_CHECKPOINTS = {seconds_between_checkpoints}
from experiments.{name}.__main__ import main
sys.exit(main())
"""


def _start(name: str, *arguments: str | Path, seconds_between_checkpoints: float = 5.0) -> subprocess.Popen:
    program = PROGRAM.format(name=name, seconds_between_checkpoints=seconds_between_checkpoints)
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **CACHE, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(name: str, *arguments: str | Path) -> tuple[int, str, str]:
    """Runs `python -m experiments.NAME` to its end: exit code, output, errors."""
    process = _start(name, *arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def call(name: str, *arguments: str | Path) -> tuple[Any, str, str]:
    """What ends before anything runs, help or a refusal, in this process: exit code, output, errors."""
    module = import_module(f"experiments.{name}.__main__")
    return call_main(lambda: harness.command_line(name, module.Config, module.run), *arguments)


def call_main(main: Callable[[], int], *arguments: object) -> tuple[Any, str, str]:
    """A command in this process: exit code, output, errors."""
    out, err = StringIO(), StringIO()
    with (
        patch.object(sys, "argv", ["command", *map(str, arguments)]),
        patch.dict(os.environ, COLUMNS="200"),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            code = main()
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


def kill_at_checkpoint(folder: Path, name: str, *arguments: str | Path) -> None:
    """Runs an experiment and kills it as soon as a checkpoint is whole in `folder`."""
    process = _start(name, *arguments, seconds_between_checkpoints=0.0)
    deadline = time.monotonic() + 240
    while not (folder.is_dir() and any(p.name.isdigit() for p in folder.iterdir())):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
