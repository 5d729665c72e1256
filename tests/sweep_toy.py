"""A toy to sweep over, and workers on it in processes of their own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp

from experiments.sweep.programs import Programs
from experiments.sweep.registry import SWEEPABLES
from experiments.sweeping import Program, Sweepable
from tests.command_line import CACHE, ROOT, call

CHUNKS = 3
PROGRAM = """
import sys
import time
from pathlib import Path
from experiments.sweep import programs
from experiments.sweep.__main__ import main
from experiments.sweep.registry import SWEEPABLES
from tests.sweep_toy import toy

SWEEPABLES["microlearning"] = toy()
run, calls = programs.Programs.run, []

def slow_run(*arguments):
    calls.append(1)
    if len(calls) > {batches}:
        Path({marker!r}).touch()
        time.sleep({hanging})
    time.sleep({delay})
    return run(*arguments)

programs.Programs.run = slow_run
sys.exit(main())
"""


def toy(traced: Callable[[], None] = lambda: None) -> Sweepable:
    """Scores `-(log10(learning_rate) + 2)^2 - penalty - seed's noise`,
    reached in chunks of a third; what is square diverges in the last.

    `traced` is called whenever a program is traced.
    """

    def make(static: Mapping[str, Any]) -> Program:
        def init(key: jax.Array, values: dict[str, jax.Array], shared: Any) -> Any:
            goal = -jnp.square(jnp.log10(values["learning_rate"]) + 2) - values["penalty"]
            return {"goal": goal + 0.01 * jax.random.normal(key) + shared, "key": key}

        def advance(carry: Any, number: Any, shared: Any) -> tuple[Any, jax.Array]:
            traced()
            diverged = (static["kind"] == "square") & (number + 1 == CHUNKS)
            score = static["width"] * carry["goal"] * (number + 1) / CHUNKS
            return carry, jnp.where(diverged, jnp.nan, score)

        return Program(init, advance, CHUNKS, jnp.zeros(()))

    return Sweepable(
        "minus the distance", "maximize", {"learning_rate": 0.1, "penalty": 0.0},
        {"width": 1, "kind": ("round", "square"), "data": "sample"}, make,
    )  # fmt: skip


def start(
    *arguments: object, marker: Path, batches: int = 0, delay: float = 0.0, hanging: float = 0.0
) -> subprocess.Popen:
    """Starts a worker on the toy; at a batch after so many it touches the marker and hangs for a while."""
    program = PROGRAM.format(marker=str(marker), batches=batches, delay=delay, hanging=hanging)
    return subprocess.Popen(
        [sys.executable, "-c", program, "--experiment", "microlearning", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **CACHE, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(marker: Path, worker: subprocess.Popen) -> None:
    """Waits until a worker has touched its marker."""
    deadline = time.monotonic() + 120
    while not marker.exists():
        assert worker.poll() is None, worker.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def run_here(*arguments: object, delay: float) -> tuple[Any, str, str]:
    """A worker on the toy in this process, to its end: exit code, output, errors."""
    run = Programs.run

    def slow_run(*arguments: Any) -> Any:
        time.sleep(delay)
        return run(*arguments)

    with patch.dict(SWEEPABLES, microlearning=toy()), patch.object(Programs, "run", slow_run):
        return call("sweep", "--experiment", "microlearning", *map(str, arguments))
