"""Labelled images in IDX files, named as in MNIST, Fashion-MNIST or EMNIST."""

import itertools
import re
from pathlib import Path

import numpy as np

from lax_learning._checks import check_instance
from lax_learning.data.digits import Digits, check_file_key, random_splits
from lax_learning.data.idx import check_path, read_idx
from lax_learning.data.types import Splits
from lax_learning.types import Key

_FILE = re.compile(
    r"(?P<set>(?!\.).*?)(?P<part>train|t10k|test)(?P<form>[-_.])(?P<kind>images|labels)(?P<rest>[-_.]idx)\d"
    r"(?P<end>(-\w+)?)(\.gz)?",
    re.IGNORECASE,
)
_EXPECTED = "files such as train-images-idx3-ubyte(.gz) and train-labels-idx1-ubyte, also for t10k or test"


def idx_images(key: Key, folder: str | Path, name: str = "") -> Splits:
    """Reads labelled images from four IDX files: MNIST, Fashion-MNIST, KMNIST, EMNIST or your own.

        x = pixels / 255        y = one_hot(label)

    Unsigned bytes are divided by 255, wider integers and floats are not scaled, signed bytes are refused.
    Files may be named as by LeCun (`train-images-idx3-ubyte`), as in many copies (`train-images.idx3-ubyte`)
    or as in EMNIST (`emnist-letters-test-images-idx3-ubyte`), optionally with `.gz`, in the folder itself or,
    as written by torchvision, in `raw` or `*/raw` below it. The largest label determines the number of
    classes; labels that start at 1, as in EMNIST's letters, are shifted to start at 0. EMNIST's images, which
    are stored transposed, are transposed back.

    Args:
        key: PRNG key for the validation set, a sixth of the training images, and for the order of all
            splits; must not be traced.
        folder: the folder with the four files.
        name: part of the file paths below the folder that identifies one set, such as "letters" or
            "FashionMNIST"; if several sets match, the one whose path starts with it.

    Returns:
        Splits of `x` float32 [n, pixels] and `y` float32 [n, classes].

    Example:

        splits = idx_images(jax.random.key(0), "data/EMNIST/raw", "letters")
    """
    check_file_key(key)
    path = check_path("folder", folder).expanduser()
    check_instance("name", name, str, "a string")
    if not path.is_dir():
        raise FileNotFoundError(f"folder: expected a folder with IDX files, got {path}, which is none")
    files = _find(path, name)
    train, test = (_read(files[part, "images"], files[part, "labels"]) for part in ("training", "test"))
    expected, got = train.images.shape[1:], test.images.shape[1:]
    if got != expected:
        raise ValueError(f"{path}: expected test images of shape {expected} as in training, got {got}")
    labels = np.concatenate([train.labels, test.labels])
    first = 1 if labels.min() == 1 else 0
    train, test = (part._replace(labels=part.labels - first) for part in (train, test))
    return random_splits(key, train, test, int(labels.max()) + 1 - first, path)


def _find(folder: Path, name: str) -> dict[tuple[str, str], Path]:
    """Finds the files of one set, by part and kind: in one folder, named alike, uncompressed if possible."""
    found: dict[str, dict[tuple[str, str], Path]] = {}
    for place in (folder, folder / "raw", *sorted(folder.glob("*/raw"))):
        for path in sorted(place.glob("*")):
            match, below = _FILE.fullmatch(path.name), path.relative_to(folder).as_posix()
            if not (match and path.is_file() and name in below):
                continue
            form = f"{match['set']}*{match['form']}*{match['rest']}*{match['end']}"
            files = found.setdefault(str(place.relative_to(folder) / form), {})
            part = "training" if match["part"].lower() == "train" else "test"
            other = files.setdefault((part, match["kind"].lower()), path)
            if path.name not in (other.name, f"{other.name}.gz"):
                raise ValueError(f"{place}: expected one file of each kind, got {other.name} and {path.name}")
    if not found:
        asked = f" with {name!r} (name) in their paths" if name else ""
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        raise FileNotFoundError(f"{folder}: expected {_EXPECTED}{asked}, got {there}")
    chosen = [form for form in found if len(found) == 1 or (name and form.startswith(name))]
    if len(chosen) != 1:
        raise ValueError(f"name: expected part of the paths of one set of {sorted(found)}, got {name!r}")
    files = found[chosen[0]]
    for part, kind in itertools.product(("training", "test"), ("images", "labels")):
        if (part, kind) not in files:
            got = f"no {part} {kind} in {sorted(path.name for path in files.values())}"
            raise FileNotFoundError(f"{folder / chosen[0]}: expected {_EXPECTED}, got {got}")
    return files


def _read(images_at: Path, labels_at: Path) -> Digits:
    images, labels = read_idx(images_at), read_idx(labels_at)
    if images.ndim < 2:
        raise ValueError(f"{images_at}: expected images of shape (n, ...), got {images.shape}")
    if images.dtype == np.int8:
        raise ValueError(
            f"{images_at}: expected unsigned bytes (type 08 in the magic number), which are divided by 255, "
            "or numbers wider than a byte, got signed bytes (09), which cannot represent 0 .. 255"
        )
    if labels.shape != images.shape[:1]:
        expected = f"{len(images)} labels, one per image of {images_at.name}"
        raise ValueError(f"{labels_at}: expected {expected}, got shape {labels.shape}")
    if len(images) == 0:
        raise ValueError(f"{images_at}: expected at least one image, got empty data")
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        got = labels.min() if labels.dtype.kind in "iu" else labels.dtype
        raise ValueError(f"{labels_at}: expected integers of at least 0, got {got}")
    is_transposed = "emnist" in images_at.name.lower() and images.ndim == 3
    return Digits(images.swapaxes(1, 2) if is_transposed else images, labels)
