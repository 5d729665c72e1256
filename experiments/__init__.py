"""Experiments, one package a system: `python -m experiments.NAME`."""

import os
import signal
import sys
from typing import Any


def _end(number: int, frame: Any) -> None:
    os.write(2, b"\ninterrupted; no run was under way\n")
    os._exit(130)


def end_at_interrupt() -> None:
    """Lets Ctrl-C end a program in one line while its modules load, which takes seconds.

    A package that is imported as a library leaves signals alone: only while `python -m` looks for a module,
    the name of the program is -m. Later `harness.command_line` handles Ctrl-C.
    """
    if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def __getattr__(name: str) -> Any:
    """`experiments.load_params`, imported when it is used: orbax takes a second."""
    if name == "load_params":
        from experiments.checkpoints import load_params

        return load_params
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


end_at_interrupt()
