"""WebDataset's layout: tar files of images and their classes, read at any sample without being unpacked."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from csqtool.data.data_source import DataSource
from csqtool.data.image_folder import SUFFIXES, ImageFolder, checked_sizes, in_turns
from csqtool.errors import DataError
from csqtool.task import task_by_name

LAYOUT = "train*.tar and val*.tar (or test*.tar), each sample NAME.jpg (or .png) and NAME.cls, the number of its class"
LONGEST_LABEL = 10  # digits; a larger file is no class number


@dataclass(frozen=True)
class StoredInTar:
    """A file inside an uncompressed tar file.

    Attributes:
        archive: the tar file.
        name: its name there.
        offset: where its bytes begin in the tar file.
        size: how many there are.
    """

    archive: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.archive}: {self.name}"

    def content(self) -> bytes:
        """Return the file's bytes."""
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def load_shards(folder: Path, *, size: int = 224, resize: int | None = None) -> DataSource:
    """Return the images in a folder's tar files as training and test sets; ``val`` or ``test`` is the test set.

    Images are cropped and resized as those of an image folder are. The files' headers are read once, at the beginning.

    Args:
        folder: holds tar files without compression, see `LAYOUT`.
        size: height and width of the model's inputs.
        resize: what the shorter side of a test image is resized to before the crop; None is 8/7 of `size`.

    Raises:
        ConfigError: Pillow is not installed, or the sizes are impossible.
        DataError: tar files are missing or damaged, or a sample lacks its image or class.
    """
    resize = checked_sizes("webdataset", size, resize)
    test = next((name for name in ("val", "test") if any(folder.glob(f"{name}*.tar"))), "val")
    train, val = (_part(folder, part, size, resize) for part in ("train", test))
    return DataSource(f"webdataset:{folder}", train, val, task_by_name("classification"))


def _part(folder: Path, part: str, size: int, resize: int) -> ImageFolder:
    archives = sorted(folder.glob(f"{part}*.tar"))
    if not archives:
        raise DataError(f"{folder} holds no {part}*.tar; write {LAYOUT} there")
    classes: dict[int, list[tuple[StoredInTar, int]]] = {}
    for archive in archives:
        for image, label in _samples(archive):
            classes.setdefault(label, []).append((image, label))
    return ImageFolder(*in_turns([classes[label] for label in sorted(classes)]), size, resize)


def _samples(archive: Path) -> Iterator[tuple[StoredInTar, int]]:
    """Yield each image of a tar file with its class.

    Raises:
        DataError: the file is damaged or compressed, or a sample is not whole.
    """
    if not archive.is_file():
        raise DataError(f"{archive} is named like a tar file but is no file; take it out of the folder")
    images: dict[str, StoredInTar] = {}
    labels: dict[str, int] = {}
    for member in _members(archive):
        # A sample's files share the name up to the first point of its last part.
        path, slash, last = member.name.rpartition("/")
        stem, _, suffix = last.partition(".")
        key, suffix = f"{path}{slash}{stem}", f".{suffix.lower()}"
        if suffix in SUFFIXES:
            if key in images:
                raise DataError(f"{member}: a second image of the sample {key}")
            images[key] = member
        elif suffix == ".cls":
            text = member.content().strip() if member.size <= LONGEST_LABEL else b""
            if not text.isdigit():
                raise DataError(f"{member} holds no class number, a whole number from 0 on")
            labels[key] = int(text)
    if odd := sorted(images.keys() ^ labels.keys()):
        raise DataError(f"{archive}: the sample {odd[0]} has no {'.cls' if odd[0] in images else 'image'}")
    if not images:
        raise DataError(f"{archive} holds no samples; each is NAME.jpg (or .png) and NAME.cls")
    yield from ((images[key], labels[key]) for key in images)


def _members(archive: Path) -> Iterator[StoredInTar]:
    whole = archive.stat().st_size
    try:
        with tarfile.open(archive, "r:") as file:
            for member in file:
                if not member.isreg():
                    continue
                if member.issparse() or member.offset_data + member.size > whole:
                    raise DataError(f"{archive}: {member.name} is sparse, or goes beyond the file's end")
                yield StoredInTar(archive, member.name, member.offset_data, member.size)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(f"{archive} is no tar file without compression: {error}") from error
