"""Runs on several processes: connecting them, identifying the first, and sharing its decisions."""

import json
import os
import sys
from collections.abc import Callable
from threading import Timer
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all

SECONDS_TO_MEET = 120


class Meeting(NamedTuple):
    """Arguments of `jax.distributed.initialize`; None is detected from SLURM, Open MPI or GKE."""

    coordinator: str | None = None  # HOST:PORT of process 0
    processes: int | None = None  # number of processes
    process: int | None = None  # index of this process


class ElsewhereError(ValueError):
    """Raised in the other processes when the first process raises and reports an error."""


def meet(name: str, meeting: Meeting) -> None:
    """Connects to the other processes of a run; call this before JAX first runs.

    Raises ValueError if no coordinator is known. If not all processes connect in time, prints a message and
    exits with 2, because JAX would abort the process from another thread with a C++ stack trace.
    """

    def give_up() -> None:
        where = meeting.coordinator or "the coordinator of the job"
        print(
            f"{name}: --coordinator: expected {meeting.processes or 'all'} processes to connect to {where} "
            f"within {SECONDS_TO_MEET:g} s, got no answer; is it reachable, and are all processes running?",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        os._exit(2)

    timer = Timer(SECONDS_TO_MEET, give_up)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(*meeting, initialization_timeout=int(2 * SECONDS_TO_MEET) + 60)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            "--distributed: expected a job of SLURM, Open MPI or GKE, or --coordinator, --processes and "
            f"--process, got neither ({error})"
        ) from None
    finally:
        timer.cancel()


def is_first() -> bool:
    """Returns whether this is the first process, which prints and writes."""
    return jax.process_index() == 0


def decided(decide: Callable[[], Any]) -> Any:
    """Calls `decide` in the first process and returns its result in all of them, sent as JSON.

    Raises:
      ValueError, OSError: in the first process, if `decide` does; the others then raise `ElsewhereError`.
    """
    if jax.process_count() == 1:
        return decide()
    error, content = None, {}
    if is_first():
        try:
            content = {"value": decide()}
        except (ValueError, OSError) as raised:
            error, content = raised, {"error": str(raised)}
    text = np.frombuffer(json.dumps(content).encode(), np.uint8)
    length = int(broadcast_one_to_all(np.int32(len(text))))
    text = broadcast_one_to_all(np.resize(text, length))
    if error is not None:
        raise error
    content = json.loads(bytes(text))
    if "error" in content:
        raise ElsewhereError(content["error"])
    return content["value"]
