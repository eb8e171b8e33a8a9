"""Folders that `save_to_disk` of Hugging Face's library wrote: images with classes, or numbers by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csqtool.data.data_source import DataSource
from csqtool.data.image_folder import ImageFolder, checked_sizes, in_turns
from csqtool.data.parts import Rows
from csqtool.errors import ConfigError, DataError
from csqtool.task import TARGETS, Task, as_task, task_by_name

LAYOUT = "what DatasetDict.save_to_disk writes, with the splits train and validation (or val, or test)"
TEST_SPLITS = ("validation", "val", "test")


@dataclass(frozen=True)
class StoredInRow:
    """An image in a row of a data set.

    Attributes:
        dataset: its image column gives the stored bytes, not decoded.
        column: the column's name.
        row: the row's number.
        where: what messages call the data set.
    """

    dataset: Any
    column: str
    row: int
    where: str

    def __str__(self) -> str:
        return f"{self.where}, row {self.row}"

    def content(self) -> bytes:
        """Return the image's bytes."""
        stored = self.dataset[self.row][self.column]
        content: bytes | None = None if stored is None else stored["bytes"]
        if content is None:
            raise DataError("the row holds no image")
        return content


def load_saved_datasets(
    folder: Path, task: str | Task | None, *, size: int | None = None, resize: int | None = None
) -> DataSource:
    """Return the splits of a folder as training and test sets; nothing is fetched from a network, no code is run.

    A data set with one column of images and one of classes gives what an image folder gives. Of any other, the columns
    of numbers are the samples, by name; their lists must have one length.

    Args:
        folder: see `LAYOUT`.
        task: of data that are no images with classes.
        size: height and width of the model's inputs, of images; 224 unless it is given.
        resize: what the shorter side of a test image is resized to before the crop; None is 8/7 of `size`.

    Raises:
        ConfigError: the library is not installed, or sizes are given for data without images.
        DataError: the folder, a split or a column is missing.
    """
    try:
        import datasets  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ConfigError("hf-datasets needs the package datasets: pip install 'csqtool[datasets]'") from error
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever the library raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{folder} is no folder of data sets: {reason}; put {LAYOUT} there") from error
    splits = loaded if isinstance(loaded, datasets.DatasetDict) else {}
    test = next((name for name in TEST_SPLITS if name in splits), TEST_SPLITS[0])
    if missing := [name for name in ("train", test) if name not in splits]:
        raise DataError(f"{folder} has no split {missing[0]}, but {', '.join(splits) or 'one set alone'}; put {LAYOUT}")
    name, features = f"hf-datasets:{folder}", splits["train"].features
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [column for column in features if column in TARGETS]
    if images:
        if len(images) > 1 or not labels:
            found = f"{len(images)} columns of images" if labels else f"no column {' or '.join(TARGETS)}"
            raise DataError(f"{name} has {found}; use a factory, file.py:name, which says what belongs together")
        size = 224 if size is None else size
        resize = checked_sizes("hf-datasets", size, resize)
        undecoded = {
            part: splits[part].cast_column(images[0], datasets.Image(decode=False)) for part in ("train", test)
        }
        sets = [
            _images(split, images[0], labels[0], size, resize, f"{name}, {part}") for part, split in undecoded.items()
        ]
        return DataSource(name, sets[0], sets[1], task_by_name("classification"))
    if size is not None or resize is not None:
        raise ConfigError(f"{name} holds no images: size and resize say nothing")
    numbers = [column for column, feature in features.items() if _is_numbers(feature)]
    if not numbers:
        raise DataError(f"{name} holds no numbers; its columns are {', '.join(features)}")
    train, val = (Rows(splits[part].with_format("torch", columns=numbers)) for part in ("train", test))
    return DataSource(name, train, val, as_task(task))


def _images(split: Any, image: str, label: str, size: int, resize: int, where: str) -> ImageFolder:
    classes: dict[int, list[tuple[StoredInRow, int]]] = {}
    for row, number in enumerate(split[label]):
        if not isinstance(number, int) or number < 0:
            raise DataError(f"{where}, row {row}: the class is {number!r}, not a whole number from 0 on")
        classes.setdefault(number, []).append((StoredInRow(split, image, row, where), number))
    return ImageFolder(*in_turns([classes[number] for number in sorted(classes)]), size, resize)


def _is_numbers(feature: Any) -> bool:
    """Tell whether a column holds numbers, or lists of them of any depth."""
    while (inner := getattr(feature, "feature", None)) is not None:
        feature = inner
    kind = str(getattr(feature, "dtype", ""))
    return kind.startswith(("int", "uint", "float", "bool"))
