"""MNIST's four IDX files: in a folder, or downloaded from the mirror that torchvision uses."""

import os
import tempfile
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from lax_learning.data.digits import Digits
from lax_learning.data.idx import read_idx

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"

MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""MD5 of the uncompressed contents, by name."""


def find_folder(folder: Path) -> Path | None:
    """Finds the folder of the files: `folder` or, as in torchvision, `MNIST/raw` in it, or None."""
    candidates = folder, folder / "MNIST" / "raw"
    return next((at for at in candidates if any(_find(at, name) for name in MD5)), None)


def read_folder(folder: Path) -> tuple[Digits, Digits]:
    """Reads training and test digits from the four files, plain or `.gz`; checks MD5 sums."""
    arrays = []
    for name, md5 in MD5.items():
        path = _find(folder, name)
        if path is None:
            raise FileNotFoundError(f"{folder}: expected MNIST's four IDX files, got no {name} or {name}.gz")
        arrays.append(read_idx(path, md5))
    return Digits(*arrays[:2]), Digits(*arrays[2:])


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def download() -> Path:
    """Downloads the four `.gz` files unless they are cached, and returns the cache folder.

    The folder is `$XDG_CACHE_HOME/lax_learning/mnist`, by default `~/.cache/lax_learning/mnist`. Files are
    moved there only once they are complete and checked.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lax_learning" / "mnist"
    folder.mkdir(parents=True, exist_ok=True)
    for name, md5 in MD5.items():
        target = folder / f"{name}.gz"
        if not target.is_file():
            _fetch(f"{MIRROR}{name}.gz", target, md5)
    return folder


def _fetch(url: str, target: Path, md5: str) -> None:
    try:
        with urlopen(url, timeout=30) as response:
            contents = response.read()
    except (OSError, HTTPException) as error:
        raise ConnectionError(f"{url}: expected MNIST's {target.name}, got {error!r}") from error
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        part = Path(scratch) / target.name
        part.write_bytes(contents)
        try:
            read_idx(part, md5)
        except ValueError as error:
            raise ValueError(f"{url}: {error}") from error
        part.replace(target)
