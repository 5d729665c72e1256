"""MNIST's four IDX files from the mirror that torchvision uses, kept in the user's cache folder."""

import os
import tempfile
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from lax_learning.data.idx import MNIST_MD5, read_idx

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"


def download_mnist() -> Path:
    """The cache folder with MNIST's four `.gz` files, after fetching those that are not there yet.

    The folder is `$XDG_CACHE_HOME/lax_learning/mnist`, or else `~/.cache/lax_learning/mnist`. A file appears
    in it whole and checked, or not at all.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lax_learning" / "mnist"
    folder.mkdir(parents=True, exist_ok=True)
    for name, md5 in MNIST_MD5.items():
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
