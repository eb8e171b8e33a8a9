"""Folders of images, a folder a class, decoded when they are needed: ImageNet's layout and augmentation."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csqtool.data.data_source import DataSource
from csqtool.data.preprocessing import Preprocessing
from csqtool.errors import ConfigError, DataError
from csqtool.task import task_by_name

SUFFIXES = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")  # what is opened, whatever the file is called: no decoders that nobody asked for
LAYOUT = "train/CLASS/*.jpg and val/CLASS/*.jpg (or test/, or .png)"
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, for pixels 0 … 255
AREA, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10
DRAWS = 2 * TRIES + 3  # area and ratio a try, the crop's place, the flip
THREADS = min(8, os.cpu_count() or 1)

Box = tuple[int, int, int, int]


class StoredImage(Protocol):
    """An image that is part of another file; as text it says where."""

    def content(self) -> bytes:
        """Return its bytes: those of a PNG or JPEG file."""
        ...


Image = TypeVar("Image")


def load_image_folder(folder: Path, *, size: int = 224, resize: int | None = None) -> DataSource:
    """Return the images under `folder` as training and test sets; `val` or `test` is the test set.

    Training images are cropped at random in area and shape, resized and flipped; test images are resized and
    cropped in the middle.

    Args:
        folder: holds ``train/CLASS/*`` and ``val/CLASS/*`` or ``test/CLASS/*``, PNG or JPEG.
        size: height and width of the model's inputs.
        resize: what the shorter side of a test image is resized to before the crop; None is 8/7 of `size`.

    Raises:
        ConfigError: Pillow is not installed, or the sizes are impossible.
        DataError: a part or its images are missing, or the parts have different classes.
    """
    resize = checked_sizes("imagefolder", size, resize)
    test_folder = next((folder / name for name in ("val", "test") if (folder / name).is_dir()), folder / "val")
    classes = {part: _classes(part) for part in (folder / "train", test_folder)}
    train_classes, test_classes = classes.values()
    if train_classes != test_classes:
        odd = sorted(set(train_classes) ^ set(test_classes))
        raise DataError(f"{folder}: train and {test_folder.name} differ in their classes: {', '.join(odd[:5])}")
    train, test = (ImageFolder(*_files(part, names), size, resize) for part, names in classes.items())
    return DataSource(f"imagefolder:{folder}", train, test, task_by_name("classification"))


def checked_sizes(kind: str, size: int, resize: int | None) -> int:
    """Return what the shorter side of a test image is resized to; 8/7 of `size` unless it is given.

    Args:
        kind: what the data's name begins with.
        size: height and width of the model's inputs.
        resize: the side, or None.

    Raises:
        ConfigError: Pillow is not installed, or the sizes are impossible.
    """
    _pillow(kind)
    resize = round(size * 8 / 7) if resize is None else resize
    if not 1 <= size <= resize:
        raise ConfigError(f"{kind}: size {size} must be at least 1 and at most resize, which is {resize}")
    return resize


def _pillow(kind: str = "imagefolder") -> Any:
    try:
        import PIL.Image
    except ImportError as error:
        raise ConfigError(f"{kind} needs Pillow: pip install 'csqtool[images]'") from error
    return PIL.Image


def _classes(part: Path) -> list[str]:
    if not part.is_dir():
        raise DataError(f"no such folder: {part}; an image folder holds {LAYOUT}")
    names = sorted(entry.name for entry in part.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{part} holds no classes; an image folder holds {LAYOUT}")
    return names


def _files(part: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    """Return the images of all classes and their labels, see `in_turns`."""
    columns = []
    for label, name in enumerate(classes):
        found = _images(part / name)
        if not found:
            raise DataError(f"{part / name} holds no images ({', '.join(SUFFIXES)})")
        columns.append([(file, label) for file in found])
    return in_turns(columns)


def in_turns(columns: Sequence[Sequence[tuple[Image, int]]]) -> tuple[list[Image], list[int]]:
    """Return the images of all classes and their labels, one of each class in turn.

    So the first N samples, on which scales are calibrated and files are verified, come from all classes.

    Args:
        columns: the images of each class, with its label.
    """
    samples = [sample for sample in chain(*zip_longest(*columns)) if sample is not None]
    return [file for file, _ in samples], [label for _, label in samples]


def _images(folder: Path) -> list[Path]:
    """Return the image files of a folder in the order of their names.

    Raises:
        DataError: the folder cannot be read, or something named like an image is no file: opening a pipe would hang.
    """
    try:
        with os.scandir(folder) as entries:  # tells what is a file without asking the disk for each
            named = sorted((e for e in entries if Path(e.name).suffix.lower() in SUFFIXES), key=lambda e: e.name)
        odd = next((entry.name for entry in named if not entry.is_file()), None)
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror or error}") from error
    if odd is not None:
        raise DataError(f"{folder / odd} is named like an image but is no file; take it out of the folder")
    return [folder / entry.name for entry in named]


@dataclass(frozen=True)
class ImageFolder:
    """One part of an image folder, or of other files of images.

    Several threads decode a batch, Pillow holds no lock while it does.

    Attributes:
        files: the images.
        labels: the class of each.
        size: height and width of the inputs.
        resize: what the shorter side is resized to before the middle crop.
    """

    files: Sequence[Path | StoredImage]
    labels: list[int]
    size: int
    resize: int

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.batch([index])
        return inputs[0], targets[0]

    @property
    def preprocessing(self) -> Preprocessing:
        """What a test image goes through."""
        steps = (
            f"RGB pixels 0 … 255, channels first, shorter side resized to {self.resize} (bilinear, antialiased), "
            f"middle {self.size}×{self.size} cropped"
        )
        return Preprocessing(steps, MEAN, STD)

    @cached_property
    def targets(self) -> Tensor:
        """All labels, int64 [N]."""
        return torch.tensor(self.labels, dtype=torch.int64)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return resized and centrally cropped inputs float32 [B, 3, size, size] and labels int64 [B]."""
        return self._decoded([self._middle] * len(indices), indices)

    def augmented_batch(self, indices: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return randomly cropped and flipped inputs float32 [B, 3, size, size] and labels int64 [B]."""
        return self.augmented_share(indices, generator, slice(None))

    def augmented_share(
        self, indices: Sequence[int], generator: torch.Generator, share: slice
    ) -> tuple[Tensor, Tensor]:
        """Return the images `share` of an augmented batch; no others are decoded."""
        draws = torch.rand(len(indices), DRAWS, generator=generator, dtype=torch.float64)[share].tolist()
        return self._decoded([RandomCrop(tuple(row), self.size) for row in draws], indices[share])

    def _decoded(self, croppers: Sequence[Any], indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        files = [self.files[int(i)] for i in indices]
        with ThreadPoolExecutor(THREADS) as pool:
            images = list(pool.map(decoded, files, croppers))
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)  # (B, H, W, C) → (B, C, H, W)
        return self.preprocessing.normalise(pixels).contiguous(), self.targets[torch.as_tensor(indices)]

    def _middle(self, image: Any) -> Any:
        width, height = image.size
        shorter = min(width, height)
        width, height = self.resize * width // shorter, self.resize * height // shorter
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        resized = image.resize((width, height), _pillow().Resampling.BILINEAR)
        return resized.crop((left, top, left + self.size, top + self.size))


@dataclass(frozen=True)
class RandomCrop:
    """Cuts a random part out of an image and flips half of the images: the usual training augmentation.

    Attributes:
        draws: `DRAWS` numbers of [0, 1) that decide everything.
        size: height and width of what comes out.
    """

    draws: tuple[float, ...]
    size: int

    def __call__(self, image: Any) -> Any:
        """Return the part, resized to size × size."""
        pillow = _pillow()
        part = image.resize((self.size, self.size), pillow.Resampling.BILINEAR, box=self.box(*image.size))
        return part.transpose(pillow.Transpose.FLIP_LEFT_RIGHT) if self.draws[-1] < 0.5 else part

    def box(self, width: int, height: int) -> Box:
        """Return left, top, right, bottom of 8 to 100 % of the area, 3:4 to 4:3 in shape.

        Where no try fits into the image, the largest middle part of an allowed shape is taken.
        """
        x, y = self.draws[-3:-1]
        for area_draw, ratio_draw in zip(self.draws[:TRIES], self.draws[TRIES : 2 * TRIES], strict=True):
            area = width * height * (AREA[0] + area_draw * (AREA[1] - AREA[0]))
            ratio = math.exp(math.log(RATIO[0]) + ratio_draw * (math.log(RATIO[1]) - math.log(RATIO[0])))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return _placed(w, h, int(x * (width - w + 1)), int(y * (height - h + 1)))
        w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
        return _placed(w, h, (width - w) // 2, (height - h) // 2)


def _placed(width: int, height: int, left: int, top: int) -> Box:
    return left, top, left + width, top + height


def decoded(file: Path | StoredImage, crop: Any) -> NDArray[np.uint8]:
    """Return an image, cropped by `crop`, uint8 [H, W, 3].

    Raises:
        DataError: it cannot be read as a PNG or JPEG image.
    """
    pillow = _pillow()
    try:
        opened = file if isinstance(file, Path) else io.BytesIO(file.content())
        with pillow.open(opened, formats=FORMATS) as image:
            return np.asarray(crop(image.convert("RGB")))
    # Pillow raises its own errors, ValueError, SyntaxError and more on damaged files.
    except Exception as error:
        raise DataError(f"cannot read the image {file}: {error}") from error
