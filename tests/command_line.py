"""Experiments as a user starts them: in a process of their own, which can be killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Checkpoints after every step, where the program itself waits for seconds to pass.
PROGRAM = (
    "import sys; from experiments import harness; harness.SECONDS_BETWEEN_CHECKPOINTS = 0.0; "
    "from experiments.{name}.__main__ import main; sys.exit(main())"
)


def start(name: str, *arguments: str | Path) -> subprocess.Popen:
    """Starts `python -m experiments.NAME`."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"), "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(name=name), *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Waits for the end: exit code, output, errors."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def kill_at_checkpoint(process: subprocess.Popen, folder: Path) -> None:
    """Kills the process as soon as a checkpoint is whole in `folder`."""
    deadline = time.monotonic() + 240
    while not (folder.is_dir() and any(p.name.isdigit() for p in folder.iterdir())):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
