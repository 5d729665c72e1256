"""IDX, the file format in which LeCun, Cortes & Burges published MNIST (1998).

A file is a magic number (two zero bytes, the type of the values, the number of axes), the length of each axis
as a big-endian 32-bit integer, then the values.
"""

import gzip
import hashlib
import math
import os
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""NumPy dtypes by type code in the magic number; all are big-endian."""


def read_idx(path: str | Path, md5: str | None = None) -> Shaped[np.ndarray, "*shape"]:
    """Reads the array in an IDX file, in its shape and dtype; arrays of unsigned bytes are read-only.

    Args:
        path: the file; decompressed if its name ends in `.gz`.
        md5: expected hex digest of the decompressed contents; not checked if None.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "three-labels-idx1-ubyte"
    >>> _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
    >>> read_idx(path)
    array([7, 2, 1], dtype=uint8)
    """
    path = check_path("path", path)
    contents = path.read_bytes()
    if path.suffix.lower() == ".gz":
        try:
            contents = gzip.decompress(contents)
        except (OSError, EOFError, zlib.error) as error:
            got = f"one that cannot be decompressed: {error}"
            raise ValueError(f"{path}: expected a whole gzip file, got {got}") from error
    if md5 is not None and (digest := hashlib.md5(contents, usedforsecurity=False).hexdigest()) != md5:
        raise ValueError(f"{path}: expected contents with md5 {md5}, got {digest}")
    if len(contents) < 4 or contents[:2] != b"\x00\x00" or contents[2] not in TYPES:
        expected = f"0000, a type of {', '.join(f'{code:02x}' for code in TYPES)} and the number of axes"
        raise ValueError(f"{path}: expected an IDX magic number: {expected}, got {contents[:4].hex()}")
    stored = np.dtype(TYPES[contents[2]])
    header = 4 + 4 * contents[3]
    shape = [int.from_bytes(contents[i : i + 4]) for i in range(4, header, 4)]
    expected = header + math.prod(shape) * stored.itemsize
    if len(contents) != expected:
        raise ValueError(f"{path}: expected {expected} bytes for shape {tuple(shape)}, got {len(contents)}")
    try:
        values = np.frombuffer(contents, stored, offset=header).reshape(shape)
    except ValueError as error:
        raise ValueError(f"{path}: expected axes that NumPy can hold, got {len(shape)}: {error}") from error
    return values.astype(stored.newbyteorder("="), copy=False)


def check_path(name: str, path: str | Path) -> Path:
    """Returns a `Path`; raises TypeError unless `path` is a path or a string."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{name}: expected a path, got {path!r}")
    return Path(path)
