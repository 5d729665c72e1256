"""Experiments, one package each: run them with `python -m experiments.NAME`."""

import os
import signal
import sys
from typing import Any


def _end(number: int, frame: Any) -> None:
    os.write(2, b"\ninterrupted; no run had started\n")
    os._exit(130)


def end_at_interrupt() -> None:
    """Makes Ctrl-C print one line instead of a traceback while modules load, which takes seconds.

    Does nothing if the package is imported as a library: `sys.argv[0]` is "-m" only while `python -m` looks
    for a module. Once modules are loaded, `harness.command_line` handles Ctrl-C.
    """
    if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def __getattr__(name: str) -> Any:
    """Imports `experiments.load_params` on first use, because importing orbax takes a second."""
    if name == "load_params":
        from experiments.checkpoints import load_params

        return load_params
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


end_at_interrupt()
