"""Checkpoints of unfinished parts of a run, written by all processes together."""

import time
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from experiments import processes

SECONDS_BETWEEN_CHECKPOINTS = 5.0


class Checkpoint:
    """The latest state of an unfinished part of a run: a step and a pytree of arrays.

    Every process writes the members on its devices. A run that goes on may have another number of devices,
    and with it other members that only fill them up: those are cut off, or start as zeros.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(self._folder, options=options)
        self._saved = time.monotonic()

    def save(self, step: int, tree: Any, *, now: bool = False) -> None:
        """Saves, unless the last time is only seconds ago."""
        late = time.monotonic() - self._saved > SECONDS_BETWEEN_CHECKPOINTS
        if now or processes.decided(lambda: late):
            self._manager.save(step, args=ocp.args.StandardSave(tree), force=True)
            self._saved = time.monotonic()

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """The step and the tree that were saved last, with the structure of `like`; None if none were."""
        step = self._manager.latest_step()
        if step is None:
            return None
        return step, self._manager.restore(step, args=ocp.args.StandardRestore(like, strict=False))
