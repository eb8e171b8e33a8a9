from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from csqtool.data import load_data
from csqtool.errors import DataError
from tests.support.images import write_images

pytest.importorskip("PIL.Image")


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_shards(images: Path, folder: Path) -> None:
    """Write the images of an image folder in two tar files for training, and one."""
    write_images(images)
    for part, shards in (("train", 2), ("val", 1)):
        for shard in range(shards):
            with tarfile.open(folder / f"{part}-{shard:06d}.tar", "w") as archive:
                for label, name in enumerate(("cat", "dog")):
                    for file in sorted((images / part / name).iterdir()):
                        if int(file.stem) % shards == shard:
                            key = f"{part}/{name}{file.stem}"
                            add(archive, f"{key}.png", file.read_bytes())
                            add(archive, f"{key}.cls", f"{label}\n".encode())
                            add(archive, f"{key}.json", b"{}")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    images, shards = tmp_path / "images", tmp_path / "shards"
    shards.mkdir()
    write_shards(images, shards)
    return images, shards


def test_images_in_tar_files_give_what_an_image_folder_gives(folders: tuple[Path, Path]) -> None:
    images, shards = folders
    files = load_data(f"imagefolder:{images}?size=16&resize=20")
    stored = load_data(f"webdataset:{shards}?size=16&resize=20")
    assert len(stored.train), len(stored.test) == (6, 4)
    assert [int(stored.train[i][1]) for i in range(6)] == [0, 1, 0, 1, 0, 1]
    order = [0, 1, 4, 5, 2, 3]  # of the images of a class, the third is in the first tar file
    for ours, theirs in ((stored.training_batch(range(2), 3), files.training_batch(range(2), 3)),
                         (stored.test.batch(range(4)), files.test.batch(range(4))),
                         (stored.train.batch(range(6)), files.train.batch(order))):  # fmt: skip
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
    assert stored.facts() == files.facts()


def changed(edit: Callable[[tarfile.TarFile], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        with tarfile.open(folder / "val-000000.tar", "a") as archive:
            edit(archive)

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "val-000000.tar").unlink(), r"holds no val\*\.tar; write train\*\.tar"),
        (lambda folder: (folder / "val-000000.tar").write_bytes(b"\x1f\x8b compressed"), "without compression"),
        (lambda folder: (folder / "val-0.tar").mkdir(), "is named like a tar file but is no file"),
        (lambda folder: tarfile.open(folder / "val-0.tar", "w").close(), "holds no samples"),
        (changed(lambda archive: add(archive, "x/new.jpg", b"")), r"the sample x/new has no \.cls"),
        (changed(lambda archive: add(archive, "new.cls", b"1")), "the sample new has no image"),
        (changed(lambda archive: add(archive, "new.cls", b"cat")), r"new\.cls holds no class number"),
        (changed(lambda archive: add(archive, "new.cls", b"9" * 5000)), r"new\.cls holds no class number"),
        (changed(lambda archive: add(archive, "val/cat0.jpg", b"")), "a second image of the sample val/cat0"),
    ],
)
def test_what_is_wrong_with_tar_files_is_said_in_one_line(
    folders: tuple[Path, Path], damage: Callable[[Path], None], said: str
) -> None:
    damage(folders[1])
    with pytest.raises(DataError, match=said):
        load_data(f"webdataset:{folders[1]}?size=16")


def test_a_damaged_image_is_named_with_its_tar_file(folders: tuple[Path, Path]) -> None:
    changed(lambda archive: [add(archive, f"val/fish.{kind}", b"2") for kind in ("png", "cls")])(folders[1])
    source = load_data(f"webdataset:{folders[1]}?size=16")
    with pytest.raises(DataError, match=r"cannot read the image .*val-000000\.tar: val/fish\.png"):
        source.test[2]


def test_a_file_that_goes_beyond_the_end_is_refused(folders: tuple[Path, Path]) -> None:
    archive = folders[1] / "val-000000.tar"
    archive.write_bytes(archive.read_bytes()[:700])
    with pytest.raises(DataError, match=r"beyond the file's end|without compression"):
        load_data(f"webdataset:{folders[1]}?size=16")
