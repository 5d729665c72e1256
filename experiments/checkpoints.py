"""Checkpoints of unfinished parts of a run, and trained parameters, written by all processes together."""

import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from experiments import processes
from experiments.folders import file_name, named_if_damaged

SECONDS_BETWEEN_CHECKPOINTS = 5.0


class Checkpoint:
    """Latest state of an unfinished part of a run: a step and a pytree of arrays.

    Every process writes the members on its devices. A run resumed on another number of devices may pad its
    members differently: padding is then truncated, or filled with zeros.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        with self._named_if_damaged():
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        self._saved = time.monotonic()

    def save(self, step: int, tree: Any) -> None:
        """Saves the state, unless it was saved within the last few seconds."""
        late = time.monotonic() - self._saved > SECONDS_BETWEEN_CHECKPOINTS
        if processes.decided(lambda: late):
            self._manager.save(step, args=ocp.args.StandardSave(tree), force=True)
            self._saved = time.monotonic()

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """Returns the last saved step and tree, with the structure of `like`; None if nothing was saved."""
        with self._named_if_damaged():
            step = self._manager.latest_step()
            if step is None:
                return None
            return step, self._manager.restore(step, args=ocp.args.StandardRestore(like, strict=False))

    def _named_if_damaged(self) -> AbstractContextManager[None]:
        remedy = f"delete {self._folder} to compute this part again"
        return named_if_damaged(self._folder, "a checkpoint", remedy)


def save_params(out: Path, part: str, params: Any) -> None:
    """Saves the trained parameters of a part of a run; every leaf has a leading axis of seeds."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((out / "params" / file_name(part)).absolute(), params, force=True)


def load_params(folder: str | Path, **part: str) -> Any:
    """Loads the parameters trained by `python -m experiments.NAME` from the folder of its run.

    Select a part by keywords, such as `rule="backprop"` or `problem="planted", scheme="clone"`; an unknown
    part raises a ValueError that lists all. Leaves have a leading axis of seeds; named tuples become dicts.
    """
    params, name = Path(folder).absolute() / "params", file_name("-".join(part.values()))
    found = sorted(path.name for path in params.iterdir()) if params.is_dir() else []
    if name not in found:
        what = ", ".join(part) or "part"
        raise ValueError(f"{what}: expected one of {', '.join(found) or 'none'} in {folder}, got {name!r}")
    with named_if_damaged(params / name, "params", "delete it"), ocp.StandardCheckpointer() as checkpointer:
        return _with_tuples(checkpointer.restore(params / name))


def _with_tuples(tree: Any) -> Any:
    if isinstance(tree, list | tuple):
        return tuple(map(_with_tuples, tree))
    return {k: _with_tuples(v) for k, v in tree.items()} if isinstance(tree, dict) else tree
