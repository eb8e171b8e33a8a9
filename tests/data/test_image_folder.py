from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from csqtool.data import load_data
from csqtool.errors import ConfigError, DataError
from tests.support.images import write_images

Image = pytest.importorskip("PIL.Image")


def test_batches_are_a_function_of_indices_and_seed(tmp_path: Path) -> None:
    write_images(tmp_path)
    source = load_data(f"imagefolder:{tmp_path}?size=16")
    one, again = (source.training_batch([0, 3, 5], seed=7) for _ in range(2))
    assert torch.equal(one[0], again[0])
    assert one[0].shape == (3, 3, 16, 16)
    assert not torch.equal(one[0], source.training_batch([0, 3, 5], seed=8)[0])


def test_test_images_are_resized_and_cropped_in_the_middle(tmp_path: Path) -> None:
    write_images(tmp_path)
    source = load_data(f"imagefolder:{tmp_path}?size=16&resize=20")
    with Image.open(tmp_path / "val" / "cat" / "0.png") as image:
        resized = np.asarray(image.resize((20 * 40 // 24, 20), Image.Resampling.BILINEAR))
    left = round((resized.shape[1] - 16) / 2)
    wanted = resized[2:18, left : left + 16].transpose(2, 0, 1)
    found, label = source.test[0]
    mean, std = (np.reshape(source.facts()["preprocessing"][key], (3, 1, 1)) for key in ("mean", "std"))
    np.testing.assert_allclose(found.numpy() * std + mean, wanted, atol=1e-3)
    assert int(label) == 0


def test_the_first_samples_come_from_all_classes(tmp_path: Path) -> None:
    write_images(tmp_path)
    source = load_data(f"imagefolder:{tmp_path}?size=16")
    assert [int(source.train[i][1]) for i in range(4)] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "val" / "dog" / "0.png").write_bytes(b"no image"), "cannot read the image"),
        (lambda folder: (folder / "val" / "dog").rename(folder / "val" / "dgo"), "differ in their classes: dgo, dog"),
        (lambda folder: (folder / "val").rename(folder / "tset"), "no such folder"),
        (lambda folder: [f.unlink() for f in (folder / "train" / "cat").iterdir()], "holds no images"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path, damage: object, said: str) -> None:
    write_images(tmp_path)
    damage(tmp_path)  # type: ignore[operator]
    with pytest.raises(DataError, match=said):
        load_data(f"imagefolder:{tmp_path}?size=16").test[1]


def test_options_are_checked(tmp_path: Path) -> None:
    write_images(tmp_path)
    for options, said in (("sise=16", "unknown option 'sise'"), ("size=big", "whole number"), ("size=0", "size 0")):
        with pytest.raises(ConfigError, match=said):
            load_data(f"imagefolder:{tmp_path}?{options}")


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigError, match=r"pip install 'csqtool\[images\]'"):
        load_data(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("nowhere.png", path)])
def test_a_pipe_a_folder_or_a_dead_link_named_like_an_image_is_refused_at_once(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    write_images(tmp_path)
    make(tmp_path / "val" / "dog" / "x.png")
    with pytest.raises(DataError, match=r"x\.png is named like an image but is no file"):
        load_data(f"imagefolder:{tmp_path}?size=16")
