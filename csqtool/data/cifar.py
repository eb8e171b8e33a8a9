"""CIFAR-10 and CIFAR-100, in their canonical binary layout or in their python layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.data.arrays import ArrayDataset
from csqtool.data.augment import ShiftAndFlip
from csqtool.data.data_source import DataSource
from csqtool.data.python_pickle import read_dict
from csqtool.errors import DataError
from csqtool.files import read_bytes
from csqtool.task import task_by_name

IMAGE_BYTES = 3 * 32 * 32
STORED = "RGB pixels 0 … 255, channels first"


@dataclass(frozen=True)
class Cifar:
    """One of the two data sets: where its files are and what they hold.

    Attributes:
        classes: number of classes.
        label_bytes: labels before each image of the binary layout; the last one is the class.
        label_key: where the python layout has the classes.
        mean, std: of a channel, for pixels 0 … 1.
    """

    name: str
    classes: int
    label_bytes: int
    label_key: str
    binary_folder: str
    binary_train: tuple[str, ...]
    binary_test: str
    python_folder: str
    python_train: tuple[str, ...]
    python_test: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def load(self, folder: Path) -> DataSource:
        """Return training and test sets from `folder`, or from the layout's own folder in it.

        Raises:
            DataError: no layout is there, or a file of it cannot be read, has the wrong size or a wrong label.
        """
        for layout, names, read in (
            (self.binary_folder, (*self.binary_train, self.binary_test), self._read_binary),
            (self.python_folder, (*self.python_train, self.python_test), self._read_python),
        ):
            for place in (folder, folder / layout):
                if any((place / name).exists() for name in names):
                    parts = [read(place / name) for name in names]
                    train = [np.concatenate(arrays) for arrays in zip(*parts[:-1], strict=True)]
                    return self._source(folder, train, parts[-1])
        raise DataError(
            f"{folder} holds no {self.name} files: neither {self.binary_train[0]} (binary layout) "
            f"nor {self.python_train[0]} (python layout); {how_to_get(self)}"
        )

    def _source(self, folder: Path, train: Any, test: Any) -> DataSource:
        def dataset(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> ArrayDataset:
            mean, std = ([255 * v for v in values] for values in (self.mean, self.std))
            return ArrayDataset(images, labels, mean=mean, std=std, stored=STORED)

        training = dataset(*train)
        # Pad by four pixels of black, crop, flip.
        augment = ShiftAndFlip(4, flip=True, fill=training.preprocessing.of_zero())
        name = f"{self.name.lower().replace('-', '')}:{folder}"
        return DataSource(name, training, dataset(*test), task_by_name("classification"), augment)

    def _read_binary(self, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        raw, record = np.frombuffer(read_bytes(path), np.uint8), self.label_bytes + IMAGE_BYTES
        if raw.size == 0 or raw.size % record:
            raise DataError(
                f"{path}: {raw.size} bytes are not whole {self.name} records of {record} bytes; "
                "the file is cut off or of another data set"
            )
        rows = raw.reshape(-1, record)
        labels = rows[:, self.label_bytes - 1].astype(np.int64)
        return self._checked(path, rows[:, self.label_bytes :], labels)

    def _read_python(self, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        content = read_dict(read_bytes(path), where=str(path))
        rows, labels = content.get("data"), content.get(self.label_key)
        if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.shape[1] != IMAGE_BYTES or not len(rows):
            shape = f"shape {list(rows.shape)}" if isinstance(rows, np.ndarray) else "missing"
            raise DataError(f"{path}: 'data' must be bytes of shape [N, {IMAGE_BYTES}], it is {shape}")
        if not isinstance(labels, list) or len(labels) != len(rows) or not all(type(x) is int for x in labels):
            raise DataError(f"{path}: {self.label_key!r} must be a list of {len(rows)} whole numbers, one an image")
        return self._checked(path, rows, np.asarray(labels, np.int64))

    def _checked(
        self, path: Path, rows: NDArray[np.uint8], labels: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        wrong = np.flatnonzero((labels < 0) | (labels >= self.classes))
        if wrong.size:
            raise DataError(
                f"{path}: image {wrong[0]} has label {labels[wrong[0]]}, {self.name} has 0 … {self.classes - 1}"
            )
        return rows.reshape(-1, 3, 32, 32), labels  # (N, channel, row, column)


CIFAR10 = Cifar(
    name="CIFAR-10",
    classes=10,
    label_bytes=1,
    label_key="labels",
    binary_folder="cifar-10-batches-bin",
    binary_train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    binary_test="test_batch.bin",
    python_folder="cifar-10-batches-py",
    python_train=tuple(f"data_batch_{i}" for i in range(1, 6)),
    python_test="test_batch",
    # ImageNet's: what the widely shared CIFAR-10 ResNets were trained with.
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
CIFAR100 = Cifar(
    name="CIFAR-100",
    classes=100,
    label_bytes=2,  # coarse, fine
    label_key="fine_labels",
    binary_folder="cifar-100-binary",
    binary_train=("train.bin",),
    binary_test="test.bin",
    python_folder="cifar-100-python",
    python_train=("train",),
    python_test="test",
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)


def how_to_get(cifar: Cifar) -> str:
    """Return where the data set comes from."""
    archive = cifar.binary_folder.replace("-batches-bin", "-binary")
    return f"unpack {archive}.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html there"
