"""Images in IDX files of any type and name, and scikit-learn's digits, against the arrays they hold."""

import gzip
import struct
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from lax_learning.data import idx_images, read_idx, sklearn_digits
from tests.refusal import refusals, refuses

pytestmark = pytest.mark.usefixtures("as_a_user_sees_it")

KEY = jax.random.key(0)
TYPES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def to_idx(array: np.ndarray) -> bytes:
    """As LeCun's page defines the format: all big-endian."""
    letter = {"uint8": "B", "int8": "b", "int16": "h", "int32": "i", "float32": "f", "float64": "d"}
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, TYPES[array.dtype.name], array.ndim, *array.shape)
    return header + struct.pack(f">{array.size}{letter[array.dtype.name]}", *array.ravel().tolist())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("suffix", ["", ".gz", ".GZ"])
def test_all_types(dtype: str, suffix: str, tmp_path: Path) -> None:
    values = np.array([[0, 1, 2], [120, 3, 100]]).astype(dtype)
    values = values if dtype == "uint8" else (values - 50).astype(dtype)
    values = values / np.asarray(3, dtype) if "float" in dtype else values
    contents = to_idx(values)
    path = tmp_path / f"array{suffix}"
    path.write_bytes(gzip.compress(contents) if suffix else contents)
    found = read_idx(path)
    assert found.dtype == values.dtype and found.dtype.isnative
    np.testing.assert_array_equal(found, values)


def stored(labels: list[int], shape: tuple[int, int] = (4, 3), dtype: str = "uint8") -> dict[str, np.ndarray]:
    """Images that tell their own number in the set, and labels, as stored."""
    images = np.arange(len(labels) * shape[0] * shape[1]).reshape(-1, *shape).astype(dtype)
    return {"images": images, "labels": np.array(labels, "uint8")}


def write(folder: Path, pattern: str, parts: dict[str, dict[str, np.ndarray]], suffix: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part, arrays in parts.items():
        for kind, array in arrays.items():
            contents = to_idx(array)
            name = pattern.format(part=part, kind=kind, ndim=3 if kind == "images" else 1)
            (folder / f"{name}{suffix}").write_bytes(gzip.compress(contents) if suffix else contents)
    return folder


def as_rows(*datasets: object) -> list[tuple[list[float], list[float]]]:
    return sorted((x.tolist(), y.tolist()) for data in datasets for x, y in zip(*data, strict=True))  # pyright: ignore


def expected(arrays: dict[str, np.ndarray], num_classes: int, first: int = 0) -> list[tuple[list, list]]:
    x = arrays["images"].reshape(len(arrays["images"]), -1).astype(np.float32) / np.float32(255)
    y = np.eye(num_classes, dtype=np.float32)[arrays["labels"] - first]
    return sorted(zip(x.tolist(), y.tolist(), strict=True))


TRAIN, TEST = stored([0, 1, 2, 0, 1, 2, 5]), stored([2, 1])


@pytest.mark.parametrize(
    ("below", "pattern", "test", "suffix"),
    [
        ("", "{part}-{kind}-idx{ndim}-ubyte", "t10k", ".gz"),
        ("", "{part}-{kind}.idx{ndim}-ubyte", "t10k", ""),
        ("FashionMNIST/raw", "{part}-{kind}-idx{ndim}-ubyte", "t10k", ""),
        ("raw", "kmnist-{part}-{kind}-idx{ndim}-ubyte", "test", ".gz"),
    ],
)
def test_names(below: str, pattern: str, test: str, suffix: str, tmp_path: Path) -> None:
    write(tmp_path / below, pattern, {"train": TRAIN, test: TEST}, suffix)
    splits = idx_images(KEY, str(tmp_path))
    assert [len(data.x) for data in splits] == [6, 1, 2]
    assert as_rows(splits.train, splits.validation) == expected(TRAIN, 6)
    assert as_rows(splits.test) == expected(TEST, 6)
    again, other = idx_images(KEY, tmp_path), idx_images(jax.random.key(1), tmp_path)
    assert as_rows(again.train) == as_rows(splits.train)
    assert (splits.train.x.tolist(), splits.validation.x.tolist()) != (
        other.train.x.tolist(), other.validation.x.tolist()
    )  # fmt: skip


def test_letters_of_emnist_are_upright_and_count_from_zero(tmp_path: Path) -> None:
    pattern = "emnist-{}-{{part}}-{{kind}}-idx{{ndim}}-ubyte"
    letters = stored([1, 2, 3, 1, 2, 26]), stored([3, 1])
    transposed = [{**part, "images": part["images"].swapaxes(1, 2)} for part in letters]
    write(tmp_path, pattern.format("letters"), dict(zip(("train", "test"), transposed, strict=True)))
    write(tmp_path, pattern.format("digits"), {"train": TRAIN, "test": TEST})
    splits = idx_images(KEY, tmp_path, "letters")
    assert as_rows(splits.train, splits.validation) == expected(letters[0], 26, first=1)
    assert as_rows(splits.test) == expected(letters[1], 26, first=1)
    refuses(
        lambda: idx_images(KEY, tmp_path),
        ValueError,
        r"name: expected part of the paths of one set of \['emnist-digits-.*', 'emnist-letters-.*'\], got ''",
    )


def test_a_set_is_not_put_together_from_two(tmp_path: Path) -> None:
    parts, more = {"train": TRAIN, "t10k": TEST}, {"train": TEST, "t10k": TRAIN}
    write(tmp_path / "FashionMNIST" / "raw", "{part}-{kind}-idx{ndim}-ubyte", parts)
    write(tmp_path / "MNIST" / "raw", "{part}-{kind}-idx{ndim}-ubyte", more)
    found = idx_images(KEY, tmp_path, "Fashion")
    assert as_rows(found.test) == expected(TEST, 6)
    # The names of one set may be part of another's, and files of other forms may lie beside it.
    here = write(tmp_path / "here", "fashion-mnist-{part}-{kind}-idx{ndim}-ubyte", more)
    write(here, "mnist-{part}-{kind}-idx{ndim}-ubyte", parts)
    write(here, "._mnist-{part}-{kind}-idx{ndim}-ubyte", more)
    (here / "mnist-train-images.idx3-ubyte").mkdir()
    assert as_rows(idx_images(KEY, here, "mnist").test) == expected(TEST, 6)
    one = write(tmp_path / "one", "{part}-{kind}-idx{ndim}-ubyte", parts)
    (one / "train-images-idx3-ubyte").unlink()
    write(one, "{part}-{kind}.idx{ndim}-ubyte", {"train": {"images": TEST["images"]}})
    refuses(lambda: idx_images(KEY, one), ValueError, "name: expected part of the paths of one set of ")
    two = write(tmp_path / "two", "{part}-{kind}-idx{ndim}-ubyte", {**parts, "test": TRAIN})
    refuses(
        lambda: idx_images(KEY, two), ValueError, "expected one file of a kind, got t10k-images.* and test-"
    )
    missing = r"expected files such as .* with 'no' \(name\) in their paths, got "
    refuses(lambda: idx_images(KEY, here, "no"), FileNotFoundError, missing)


def test_values_of_other_types_stay_as_they_are(tmp_path: Path) -> None:
    images = {part: stored([0, 1] * 3)["images"].astype("float32") - 7.5 for part in ("train", "t10k")}
    parts = {part: {"images": x, "labels": np.array([0, 1] * 3, "int32")} for part, x in images.items()}
    splits = idx_images(KEY, write(tmp_path, "{part}-{kind}-idx{ndim}-float", parts))
    assert np.sort(splits.test.x.ravel()).tolist() == images["t10k"].ravel().tolist()


BAD = {
    "t10k-labels-idx1-ubyte: expected 2 labels, one an image of t10k-images-idx3-ubyte, got shape \\(3,\\)": {
        "t10k": {**TEST, "labels": TRAIN["labels"][:3]}
    },
    "expected test images of shape \\(4, 3\\) as those to train on, got \\(3, 4\\)": {
        "t10k": stored([0, 1], (3, 4))
    },
    "expected at least 6 training images, got 2": {"train": TEST},
    "expected at least one image, got empty data": {"t10k": {k: a[:0] for k, a in TEST.items()}},
    "train-images-idx3-ubyte: expected unsigned bytes .*, got signed bytes": {
        "train": stored([0, 1, 2] * 2, dtype="int8")
    },
    "t10k-labels-idx1-ubyte: expected integers of at least 0, got -1": {
        "t10k": {**TEST, "labels": np.array([-1, 0], "int8")}
    },
    "t10k-labels-idx1-ubyte: expected integers of at least 0, got float32": {
        "t10k": {**TEST, "labels": np.array([1, 0], "float32")}
    },
    "t10k-images-idx3-ubyte: expected images, an axis of them first, got \\(2,\\)": {
        "t10k": {"images": TEST["labels"], "labels": TEST["labels"]}
    },
}


@pytest.mark.parametrize("message", BAD)
def test_files_that_do_not_fit_together(message: str, tmp_path: Path) -> None:
    write(tmp_path, "{part}-{kind}-idx{ndim}-ubyte", {"train": TRAIN, "t10k": TEST, **BAD[message]})
    refuses(lambda: idx_images(KEY, tmp_path), ValueError, message)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    refuses(lambda: idx_images(KEY, tmp_path / "no"), FileNotFoundError, "folder: expected a folder with IDX")
    (tmp_path / "notes.txt").touch()
    refuses(lambda: idx_images(KEY, tmp_path), FileNotFoundError, "expected files such as .*, got notes.txt")
    write(tmp_path, "{part}-{kind}-idx{ndim}-ubyte", {"train": TRAIN, "t10k": TEST})
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1])
    refuses(
        lambda: idx_images(KEY, tmp_path), ValueError, f"{labels}: expected 10 bytes for shape .2,., got 9"
    )
    labels.unlink()
    refuses(lambda: idx_images(KEY, tmp_path), FileNotFoundError, "got no test labels in")


test_refused = refusals(
    types={
        "folder: expected a path, got 3": lambda: idx_images(KEY, 3),  # pyright: ignore[reportArgumentType]
        "name: expected a string, got 3": lambda: idx_images(KEY, ".", 3),  # pyright: ignore[reportArgumentType]
        "key: expected one with a value, got a traced one; read the images outside of jit and vmap": [
            lambda: jax.jit(sklearn_digits)(KEY),
            lambda: jax.vmap(lambda key: idx_images(key, "."))(jax.random.split(KEY)),
        ],
        "key: expected": [lambda: idx_images(0, "."), lambda: sklearn_digits(0)],  # pyright: ignore[reportArgumentType]
    }
)


def test_digits_of_scikit_learn() -> None:
    splits = sklearn_digits(KEY)
    assert [len(data.x) for data in splits] == [1203, 297, 297]
    images, labels = load_digits(return_X_y=True)
    whole = sorted(zip((images / 16).tolist(), np.eye(10)[labels].tolist(), strict=True))
    assert as_rows(*splits) == whole  # sixteenths are exact
    assert splits.train.x.dtype == splits.train.y.dtype == np.float32
    assert sklearn_digits(jax.random.key(1)).test.x.tolist() != splits.test.x.tolist()


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'lax_learning\[experiments\]'"):
        sklearn_digits(KEY)
