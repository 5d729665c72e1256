"""MNIST as a prepared tensorflow-datasets folder, written and read without tensorflow or network access."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lax_learning.data.digits import IMAGE_SHAPE, NUM_CLASSES, Digits, from_extra
from lax_learning.data.idx import check_path
from lax_learning.data.mnist_files import read_folder

_EXPECTED = "prepared folders: expected the packages tensorflow-datasets and pillow"


def find_prepared(data_dir: Path) -> Path | None:
    """Returns the newest complete `mnist/<version>` in a tfds data dir, or None."""
    folders = [path.parent for path in data_dir.glob("mnist/*/dataset_info.json")]
    versions = [folder for folder in folders if re.fullmatch(r"\d+\.\d+\.\d+", folder.name)]
    return max(versions, key=lambda folder: [int(number) for number in folder.name.split(".")], default=None)


def read_prepared(folder: Path) -> tuple[Digits, Digits]:
    """Reads training and test digits from a prepared `mnist/<version>` folder, in tfds's shuffled order.

    Raises ValueError for a damaged folder, and for formats other than array_record, the only one that can be
    read without tensorflow.
    """
    tfds = from_extra("tensorflow_datasets", _EXPECTED)
    from_extra("PIL.Image", _EXPECTED)  # decodes the images

    def digits(split: str) -> Digits:
        try:
            examples = list(tfds.builder_from_directory(folder).as_data_source(split))
            images = np.stack([example["image"] for example in examples], dtype=np.uint8)
            labels = np.array([example["label"] for example in examples], np.uint8)
            return Digits(images.reshape(len(images), *IMAGE_SHAPE), labels)
        # The errors of tfds, protobuf, array_record and Pillow have no other common base class.
        except Exception as error:
            expected = f"expected array_record files of split {split!r}"
            raise ValueError(f"{folder}: {expected}, got {error!r}") from error

    return digits("train"), digits("test")


def prepare_tfds(idx_folder: str | Path, data_dir: str | Path) -> Path:
    """Writes MNIST's four IDX files as `mnist/<version>` in a tfds data dir, and returns that folder.

    Unlike tfds's own builder, this does not need tensorflow. The folder can be read by `mnist(key, data_dir)`
    and by `tfds.data_source("mnist", data_dir=data_dir)`. If it already exists, it is kept.

    Example:

        prepare_tfds("mnist_idx", "~/tensorflow_datasets")
        splits = mnist(key, "tfds")
    """
    source, target = check_path("idx_folder", idx_folder), check_path("data_dir", data_dir)
    tfds = from_extra("tensorflow_datasets", _EXPECTED)
    image_from_array = from_extra("PIL.Image", _EXPECTED).fromarray
    train, test = read_folder(source.expanduser())

    with tfds.core.registered.skip_registration():  # "mnist" remains the name of tfds's own builder

        class Mnist(tfds.core.GeneratorBasedBuilder):
            name = "mnist"
            VERSION = tfds.core.Version("3.0.1")  # version and features are those of tfds's own builder

            def _info(self) -> Any:
                image = tfds.features.Image(shape=(*IMAGE_SHAPE, 1))
                label = tfds.features.ClassLabel(num_classes=NUM_CLASSES)
                features = tfds.features.FeaturesDict({"image": image, "label": label})
                return tfds.core.DatasetInfo(
                    builder=self, features=features, supervised_keys=("image", "label")
                )

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                return {"train": self._generate_examples(train), "test": self._generate_examples(test)}

            def _generate_examples(self, digits: Digits) -> Iterator[tuple[int, dict[str, Any]]]:
                for index, (image, label) in enumerate(zip(*digits, strict=True)):
                    yield index, {"image": image_from_array(image), "label": int(label)}

    builder = Mnist(data_dir=target.expanduser(), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)
