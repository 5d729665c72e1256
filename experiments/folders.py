"""Output folders: locked by one process, tied to one configuration, with files written atomically."""

import fcntl
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import xarray as xr

from experiments import memory


class FolderError(ValueError):
    """Raised for an output folder that a run cannot use."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file atomically: `write` creates a temporary file beside `path`, which then replaces it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    write(beside)
    os.replace(beside, path)


def without_nan(content: Any) -> Any:
    """Returns JSON content with None in the place of non-finite numbers."""
    return json.loads(json.dumps(content), parse_constant=lambda name: None)


def file_name(part: str) -> str:
    """Returns the file name of a part; some file systems do not allow the colon of MODULE:FUNCTION."""
    return part.replace(":", "--")


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically, with null for non-finite numbers."""
    text = json.dumps(without_nan(content), indent=1, allow_nan=False) + "\n"
    write_whole(path, lambda p: p.write_text(text))


def write_dataset(path: Path, dataset: xr.Dataset | xr.DataTree) -> None:
    """Writes netCDF atomically."""
    write_whole(path, lambda p: dataset.to_netcdf(p, engine="h5netcdf"))


@contextmanager
def named_if_damaged(path: Path, what: str, remedy: str) -> Iterator[None]:
    """Turns any error in reading a file of a run into a `FolderError` with its path and a remedy."""
    try:
        yield
    except Exception as error:
        if memory.out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        got = f"a file that cannot be read ({reason}); {remedy}"
        raise FolderError(f"--out: expected {what} in {path}, got {got}") from None


def read_dataset(path: Path) -> xr.Dataset:
    """Reads a dataset into memory and closes the file."""
    with named_if_damaged(path, "results", "delete it to compute them again"):
        dataset = xr.load_dataset(path, engine="h5netcdf")
    return dataset.drop_encoding()  # encodings would truncate names when merged


def read_config(out: Path) -> dict[str, Any] | None:
    """Reads the configuration of the run in a folder; returns None if there is no run."""
    path = out / "config.json"
    if not path.exists():
        return None
    with named_if_damaged(path, "a configuration", f"delete {out} to compute its results again"):
        return dict(json.loads(path.read_bytes()))


@dataclass
class Claim:
    """A folder locked by this process."""

    lock: Any  # open, locked file; the system releases the lock when the process ends
    made_folder: bool
    made_config: bool = False  # whether this process wrote config.json


_claims: dict[Path, Claim] = {}


@contextmanager
def claims() -> Iterator[None]:
    """Releases, on exit, all folders that were claimed inside the context.

    If an error occurs before anything was computed, the files and folders that were created are removed.
    """
    failed = False
    try:
        yield
    except Exception:
        failed = True
        raise
    finally:
        while _claims:
            out, claim = _claims.popitem()
            with claim.lock, suppress(OSError):
                _let_go(out, claim, failed)


def _let_go(out: Path, claim: Claim, failed: bool) -> None:
    fcntl.flock(claim.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError if other processes share the folder
    parts = (path.relative_to(out).parts for path in out.rglob("*") if path.is_file())
    computed = any(not p[-1].startswith(".") and p != ("config.json",) and "compiled" not in p for p in parts)
    if failed and claim.made_config and not computed:
        (out / "config.json").unlink()
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    (out / ".lock").unlink()
    if failed and claim.made_folder:
        out.rmdir()  # OSError unless it is empty


def _lock(out: Path, shared: bool) -> Any:
    """Locks a folder; the system releases the lock of a killed process."""
    path = out / ".lock"
    while True:
        lock = path.open("a+")
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            got = f"{out}, in use by {lock.read() or 'another process'}"
            lock.close()
            raise FolderError(f"--out: expected a folder that is not in use, got {got}") from None
        except OSError as error:  # a file system without locks
            print(f"warning: {out} cannot be locked ({error}); start only one run in it", file=sys.stderr)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                break
        lock.close()  # removed in the meantime by the process that held it
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {platform.node()} since {datetime.now():%Y-%m-%d %H:%M:%S}")
    lock.flush()
    return lock


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns the values of two configurations where they differ."""
    return {name: (a.get(name), b.get(name)) for name in sorted({**a, **b}) if a.get(name) != b.get(name)}


def changes(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Lists the differences between an earlier configuration and this one; "" if there are none."""
    differences = differing(there, here).items()
    return "; ".join(f"{name}: {before!r} before, {now!r} now" for name, (before, now) in differences)


@contextmanager
def written(out: Path) -> Iterator[None]:
    """Turns any error in writing to a folder into a `FolderError` that names it."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise FolderError(f"--out: expected a folder that can be written to, got {out} ({reason})") from None


def make_folder(out: Path) -> None:
    """Creates a folder, unless it exists; raises FolderError if it cannot be created or written to."""
    with written(out):
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / ".writable", Path.touch)
        (out / ".writable").unlink()


def open_folder(out: Path, config: Mapping[str, Any], *, resume: bool, shared: bool = False) -> None:
    """Claims a folder for this process and configuration until `claims` exits or the process ends.

    Args:
      out: the folder, created if it does not exist.
      config: the settings that determine the results, as JSON values.
      resume: whether to resume the run in the folder; prints a note if there is none.
      shared: whether to share the folder with other processes that set this, such as workers of a sweep.

    Raises:
      FolderError: if another process uses the folder; if it holds other files, another configuration, a
        damaged one, or this one without `resume`; or if it cannot be created or written to.
    """
    wanted = json.loads(json.dumps(config))
    with written(out):
        if out.exists() and not out.is_dir():
            raise FolderError(f"--out: expected a folder, got the file {out}")
        made_folder = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
        key = out.resolve()
        if key not in _claims:
            _claims[key] = Claim(_lock(out, shared), made_folder)
        # Before the configuration is read: workers that start together may write it at any moment.
        has_files = any(not path.name.startswith(".") for path in out.iterdir())
        held = read_config(out)
        if held is None:
            if has_files:
                raise FolderError(f"--out: expected an empty folder or one of an earlier run, got {out}")
            if resume:
                print(f"--resume: {out} holds no run; starting a new one", file=sys.stderr)
            write_json(out / "config.json", wanted)
            _claims[key].made_config = True
        elif named := changes(held, wanted):
            raise FolderError(
                f"--out: {out} holds a run of another configuration ({named}); "
                "expected another folder, or --resume without these options"
            )
        elif not resume:
            raise FolderError(f"--out: {out} holds a run already; expected another folder, or --resume")
