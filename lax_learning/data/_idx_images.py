"""Labelled images in IDX files under any of the names they come with: MNIST's, Fashion-MNIST's, EMNIST's."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Shaped

from lax_learning._checks import check_key
from lax_learning.data.idx import read_idx
from lax_learning.data.types import Dataset, Splits, one_hot
from lax_learning.types import Key

_FILE = re.compile(
    r"(?P<set>(?!\.).*?)(?P<part>train|t10k|test)(?P<form>[-_.])(?P<kind>images|labels)(?P<rest>[-_.]idx)\d"
    r"(?P<end>(-\w+)?)(\.gz)?",
    re.IGNORECASE,
)
_EXPECTED = "files such as train-images-idx3-ubyte(.gz), with labels-idx1 and of t10k or test"


class _Part(NamedTuple):
    """Images and labels of the training or test set, as stored."""

    images: Shaped[np.ndarray, "n ..."]
    labels: Shaped[np.ndarray, " n"]


def idx_images(key: Key, folder: str | Path, name: str = "") -> Splits:
    """Labelled images from a folder of four IDX files: MNIST, Fashion-MNIST, KMNIST, EMNIST or one's own.

        x = pixels / 255        y = one_hot(label)

    Bytes are divided by 255; values of other types are left as they are. Names may be LeCun's
    (`train-images-idx3-ubyte`), those of many copies (`train-images.idx3-ubyte`) or EMNIST's
    (`emnist-letters-test-images-idx3-ubyte`), each also with `.gz`, in the folder or in `raw` or `*/raw`
    below it, where torchvision puts them. There are as many classes as the largest label says; labels that
    start at 1, as those of EMNIST's letters, are counted from 0. EMNIST stores its images transposed: they
    are turned upright.

    Args:
        key: chooses the validation set, a sixth of the training images, and the order of all splits.
        folder: with the four files.
        name: part of the paths of files, below the folder, that tells one set from the others, such as
            "letters" or "FashionMNIST"; of several sets with it, the one whose path starts with it.

    Returns:
        Splits of `x` float32 [n, pixels] and `y` float32 [n, classes].

    Raises:
        TypeError: folder is no path, name no string, or key no key.
        FileNotFoundError: the folder is missing, or one of the four files.
        ValueError: several sets have such names, or one has two files of a kind; a file is damaged; images
            and labels differ in number, or test images in shape from training images; labels are no integers
            of at least 0.

    Example:

        splits = idx_images(jax.random.key(0), "data/EMNIST/raw", "letters")
    """
    check_key("key", key)
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"folder: expected a path, got {folder!r}")
    if not isinstance(name, str):
        raise TypeError(f"name: expected a string, got {name!r}")
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"folder: expected a folder with IDX files, got {path}, which is none")
    train, test = (_read(files, path) for files in _find(path, name))
    if train.images.shape[1:] != test.images.shape[1:]:
        shapes = train.images.shape[1:], test.images.shape[1:]
        raise ValueError(
            f"{path}: expected test images of shape {shapes[0]} as those to train on, got {shapes[1]}"
        )
    labels = np.concatenate([train.labels, test.labels])
    first = 1 if labels.min() == 1 else 0
    num_classes, num_validation = int(labels.max()) + 1 - first, len(train.labels) // 6
    if num_validation == 0:
        raise ValueError(f"{path}: expected at least 6 training images, got {len(train.labels)}")

    def dataset(part: _Part, chosen: np.ndarray) -> Dataset:
        x = part.images[chosen].reshape(len(chosen), -1)
        x = x.astype(np.float32) / np.float32(255 if x.dtype == np.uint8 else 1)
        return Dataset(x, one_hot(part.labels[chosen] - first, num_classes))

    orders = (
        np.asarray(jax.random.permutation(each, len(part.labels)))
        for each, part in zip(jax.random.split(key), (train, test), strict=True)
    )
    of_train, of_test = orders
    validation, rest = np.split(of_train, [num_validation])
    return Splits(dataset(train, rest), dataset(train, validation), dataset(test, of_test))


def _find(folder: Path, name: str) -> list[dict[str, Path]]:
    """Files of the training and of the test set, each with images and labels.

    A set is what is written in one place and one form; of a file and the same with .gz the first counts.
    """
    found: dict[str, dict[tuple[bool, str], Path]] = {}
    for place in (folder, folder / "raw", *sorted(folder.glob("*/raw"))):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            match, below = _FILE.fullmatch(path.name), path.relative_to(folder).as_posix()
            if not (match and path.is_file() and name in below):
                continue
            form = f"{match['set']}*{match['form']}*{match['rest']}*{match['end']}"
            files = found.setdefault(str(place.relative_to(folder) / form), {})
            kind = match["part"].lower() == "train", match["kind"].lower()
            other = files.setdefault(kind, path)
            if path.name not in (other.name, f"{other.name}.gz"):
                raise ValueError(f"{place}: expected one file of a kind, got {other.name} and {path.name}")
    if not found:
        asked = f" with {name!r} (name) in their paths" if name else ""
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        raise FileNotFoundError(f"{folder}: expected {_EXPECTED}{asked}, got {there}")
    chosen = [form for form in found if len(found) == 1 or (name and form.startswith(name))]
    if len(chosen) != 1:
        raise ValueError(f"name: expected part of the paths of one set of {sorted(found)}, got {name!r}")
    files = found[chosen[0]]
    sets = [
        {kind: files[train, kind] for kind in ("images", "labels") if (train, kind) in files}
        for train in (True, False)
    ]
    for part, of_part in zip(("training", "test"), sets, strict=True):
        for kind in ("images", "labels"):
            if kind not in of_part:
                got = f"no {part} {kind} in {sorted(path.name for path in files.values())}"
                raise FileNotFoundError(f"{folder / chosen[0]}: expected {_EXPECTED}, got {got}")
    return sets


def _read(files: dict[str, Path], folder: Path) -> _Part:
    part = _Part(read_idx(files["images"]), read_idx(files["labels"]))
    name = files["images"].name
    if part.images.ndim < 2:
        raise ValueError(
            f"{files['images']}: expected images, an axis of them first, got {part.images.shape}"
        )
    if part.labels.shape != part.images.shape[:1]:
        raise ValueError(
            f"{files['labels']}: expected {len(part.images)} labels, one an image of {name}, "
            f"got shape {part.labels.shape}"
        )
    if len(part.labels) == 0:
        raise ValueError(f"{files['images']}: expected at least one image, got empty data")
    if part.labels.dtype.kind not in "iu" or part.labels.min() < 0:
        got = part.labels.min() if part.labels.dtype.kind in "iu" else part.labels.dtype
        raise ValueError(f"{files['labels']}: expected integers of at least 0, got {got}")
    is_transposed = "emnist" in name.lower() and part.images.ndim == 3
    return part._replace(images=part.images.swapaxes(1, 2)) if is_transposed else part
