"""Folders in COCO's layout: images with boxes, for detectors."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csqtool import documents
from csqtool.data.data_source import DataSource
from csqtool.data.image_folder import MEAN, STD, THREADS, checked_sizes, decoded
from csqtool.data.preprocessing import Preprocessing
from csqtool.errors import ConfigError, DataError
from csqtool.files import read_bytes
from csqtool.task import Task, as_task
from csqtool.task.detection import NO_BOX

LAYOUT = (
    "annotations/instances_train*.json and instances_val*.json, and the images of each in a folder of its last word"
)
NEEDS_TASK = (
    "coco: a detector's loss is its own; in Python give task=csqtool.task.Detection(loss, boxes), on the command line "
    "a factory, file.py:name, that returns csqtool.data.load_data('coco:DIR', task=…)"
)


class _Image(msgspec.Struct):
    id: int
    file_name: str


class _Box(msgspec.Struct):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int = 0


class _Category(msgspec.Struct):
    id: int
    name: Annotated[str, msgspec.Meta(min_length=1)]


class _Annotations(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Box]
    categories: list[_Category]


def load_coco(folder: Path, task: str | Task | None, *, size: int = 640) -> DataSource:
    """Return images with boxes as training and test sets.

    Images keep their shape: the longer side becomes `size`, and what is missing to a square, at the right or the
    bottom, is the mean colour. Half of the training images are flipped. Targets are ``boxes`` [N, K, 4], x and y of two
    corners in pixels of the input, and ``labels`` [N, K], categories numbered from 0 in the order of their ids; where
    an image has fewer than K boxes, labels are -1. Crowds and boxes without area are left out.

    Args:
        folder: see `LAYOUT`.
        task: an object of the `Task` protocol, such as `csqtool.task.Detection`.
        size: height and width of the model's inputs.

    Raises:
        ConfigError: no task is given as an object, Pillow is not installed, or the size is impossible.
        DataError: annotations or images are missing, or do not belong together.
    """
    if task is None or isinstance(task, str):
        raise ConfigError(NEEDS_TASK)
    checked_sizes("coco", size, None)
    train, test = (_read(_annotations(folder, names), folder, size) for names in (("train",), ("val", "test")))
    if train.categories != test.categories:
        odd = sorted(set(train.categories) ^ set(test.categories))
        raise DataError(f"{folder}: training and test set differ in their categories: {', '.join(odd[:5])}")
    return DataSource(f"coco:{folder}", train, test, as_task(task))


def _annotations(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if found := sorted((folder / "annotations").glob(f"instances_{name}*.json")):
            return found[0]
    raise DataError(f"no such file: {folder}/annotations/instances_{names[0]}*.json; a COCO folder holds {LAYOUT}")


def _read(file: Path, folder: Path, size: int) -> CocoFolder:
    found = documents.decode(
        _Annotations, read_bytes(file), where=str(file), what="COCO's annotations", error=DataError
    )
    part = file.stem.removeprefix("instances_")
    images = next((f for f in (folder / part, folder / "images" / part) if f.is_dir()), None)
    if images is None:
        raise DataError(f"no such folder: {folder / part}, nor {folder / 'images' / part}, for the images of {file}")
    categories = sorted(found.categories, key=lambda category: category.id)
    numbers = {category.id: number for number, category in enumerate(categories)}
    boxes: dict[int, list[tuple[float, ...]]] = {image.id: [] for image in found.images}
    if not boxes or len(boxes) < len(found.images):
        raise DataError(f"{file} names no images" if not boxes else f"{file} has two images of one id")
    for box in found.annotations:
        left, top, width, height = box.bbox
        if box.image_id not in boxes or box.category_id not in numbers or not np.isfinite(box.bbox).all():
            raise DataError(f"{file}: a box of the image {box.image_id} and category {box.category_id}, not both there")
        if not box.iscrowd and width > 0 and height > 0:
            corners = left, top, left + width, top + height
            boxes[box.image_id].append((*corners, float(numbers[box.category_id])))
    files = [_inside(images, image.file_name, file) for image in found.images]
    arrays = [np.array(boxes[image.id], np.float32).reshape(-1, 5) for image in found.images]
    return CocoFolder(files, arrays, size, tuple(category.name for category in categories))


def _inside(folder: Path, name: str, where: Path) -> Path:
    """Return an image's file; a name must not lead out of the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or not path.parts:
        raise DataError(f"{where}: {name!r} is no name of a file in {folder}")
    found = folder / path
    if not found.is_file():
        raise DataError(f"{where}: no such image: {found}")
    return found


@dataclass(frozen=True)
class CocoFolder:
    """One part of a folder in COCO's layout.

    Attributes:
        files: the images.
        boxes: of each image [k, 5]: left, top, right and bottom in pixels of the image, and the category's number.
        size: height and width of the inputs.
        categories: names of the categories.
    """

    files: list[Path]
    boxes: list[NDArray[np.float32]]
    size: int
    categories: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        inputs, targets = self.batch([index])
        return inputs[0], {name: values[0] for name, values in targets.items()}

    @property
    def most(self) -> int:
        """The largest number of boxes of an image, K, at least one."""
        return max(1, *map(len, self.boxes))

    @property
    def preprocessing(self) -> Preprocessing:
        """What an image goes through."""
        steps = (
            f"RGB pixels 0 … 255, channels first, longer side resized to {self.size} (bilinear, antialiased), filled "
            f"up with the mean at the right or the bottom to {self.size}×{self.size}"
        )
        return Preprocessing(steps, MEAN, STD)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return inputs float32 [B, 3, size, size], and boxes [B, K, 4] and labels [B, K]."""
        return self._made(indices, [False] * len(indices))

    def augmented_batch(self, indices: Sequence[int], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the same, half of the images flipped."""
        return self.augmented_share(indices, generator, slice(None))

    def augmented_share(
        self, indices: Sequence[int], generator: torch.Generator, share: slice
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the images `share` of an augmented batch; no others are decoded."""
        flips = (torch.rand(len(indices), generator=generator) < 0.5)[share].tolist()
        return self._made(indices[share], flips)

    def _made(self, indices: Sequence[int], flips: list[bool]) -> tuple[Tensor, dict[str, Tensor]]:
        with ThreadPoolExecutor(THREADS) as pool:
            samples = list(pool.map(self._sample, map(int, indices), flips))
        inputs = torch.stack([image for image, _ in samples])
        boxes = torch.zeros(len(samples), self.most, 4)
        labels = torch.full((len(samples), self.most), NO_BOX)
        for number, (_, found) in enumerate(samples):
            boxes[number, : len(found)] = found[:, :4]
            labels[number, : len(found)] = found[:, 4].long()
        return inputs, {"boxes": boxes, "labels": labels}

    def _sample(self, index: int, flip: bool) -> tuple[Tensor, Tensor]:
        """Return an image [3, size, size] and its boxes [k, 5] in pixels of it."""
        from PIL.Image import Resampling

        scale, width = 1.0, 0

        def fit(image: Any) -> Any:
            nonlocal scale, width
            scale = self.size / max(image.size)
            width, height = (max(1, round(side * scale)) for side in image.size)
            return image.resize((width, height), Resampling.BILINEAR)

        pixels = torch.from_numpy(decoded(self.files[index], fit).copy()).permute(2, 0, 1)  # (H, W, C) → (C, H, W)
        boxes = torch.from_numpy(self.boxes[index].copy())
        boxes[:, :4] *= scale
        if flip:
            pixels = pixels.flip(2)
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        filled = torch.zeros(3, self.size, self.size)  # the mean, once it is subtracted
        filled[:, : pixels.shape[1], : pixels.shape[2]] = self.preprocessing.normalise(pixels[None])[0]
        return filled, boxes
