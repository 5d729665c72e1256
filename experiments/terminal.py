"""Terminal handling for commands: characters that an encoding lacks, closed pipes, and Ctrl-C."""

import _thread
import codecs
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def interruptible() -> Iterator[None]:
    """Makes Ctrl-C raise KeyboardInterrupt inside the context, if a handler in Python is installed.

    Python discards exceptions raised in callbacks of the garbage collector, and JAX registers such a
    callback. An interrupt that is lost there is sent again.
    """
    handler = signal.getsignal(signal.SIGINT)
    if handler in (signal.SIG_IGN, signal.default_int_handler) or not callable(handler):
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    hook, sys.unraisablehook = sys.unraisablehook, _send_again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGINT, handler)


def _send_again(ignored: Any) -> None:
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        threading.Timer(0.1, _thread.interrupt_main).start()  # raised here, it would be discarded too
    else:
        sys.__unraisablehook__(ignored)


SPELLED = {"±": "+-", "²": "^2", "σ": "sigma", "η": "eta", "…": "..."}


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(SPELLED.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


@contextmanager
def streams() -> Iterator[None]:
    """Makes output safe on any terminal: spells out characters that its encoding lacks; allows closed pipes.

    A standard stream that is closed from the start is replaced by `os.devnull`.
    """
    codecs.register_error("spell", _spell)
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115 (open until the process ends)
        with suppress(AttributeError):
            getattr(sys, stream).reconfigure(errors="spell")
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BrokenPipeError:  # otherwise the interpreter reports it at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
