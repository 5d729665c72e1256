"""Many processes as one run: how they meet, which is the first, and how all do what the first decides."""

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
    """Place where processes meet; what is None is found out from SLURM, Open MPI or GKE."""

    coordinator: str | None = None  # HOST:PORT of process 0
    processes: int | None = None  # how many there are
    process: int | None = None  # which one this is


class ElsewhereError(ValueError):
    """An error that the first process reports."""


def meet(name: str, meeting: Meeting) -> None:
    """Joins the other processes of a run. JAX must not have run before.

    A ValueError if no meeting place is known. If they have not all met in time, the process says so and ends
    with exit code 2: JAX itself would abort it from a thread of its own, with a stack of C++ calls.
    """
    where, seconds = meeting.coordinator or "the coordinator of the job", SECONDS_TO_MEET

    def give_up() -> None:
        print(
            f"{name}: --coordinator: expected {meeting.processes or 'all'} processes to meet at {where} "
            f"within {seconds:g} s, got no answer; is it reachable, and does every process run?",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        os._exit(2)

    timer = Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(*meeting, initialization_timeout=int(2 * seconds) + 60)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            "--distributed: expected a job of SLURM, Open MPI or GKE, or --coordinator, --processes and "
            f"--process, got neither ({error})"
        ) from None
    finally:
        timer.cancel()


def is_first() -> bool:
    """Returns whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def decided(decide: Callable[[], Any]) -> Any:
    """Hands the decision of the first process to every process; it travels as JSON.

    Raises:
      ValueError, OSError: that of the first process; in the others `ElsewhereError`.
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
