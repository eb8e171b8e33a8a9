from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from csqtool.data import DataSource, load_data
from csqtool.errors import ConfigError, DataError
from csqtool.task import Detection, unpadded

Image = pytest.importorskip("PIL.Image")

TASK = Detection(lambda outputs, targets: outputs.sum(), boxes=list)
SIZES = {1: (40, 20), 2: (16, 32)}  # width and height
BOXES = [
    {"image_id": 1, "category_id": 7, "bbox": [4, 4, 20, 8], "iscrowd": 0, "area": 160},
    {"image_id": 1, "category_id": 3, "bbox": [0, 0, 40, 20]},
    {"image_id": 1, "category_id": 3, "bbox": [1, 1, 5, 5], "iscrowd": 1},
    {"image_id": 2, "category_id": 3, "bbox": [2, 2, 0, 4]},
]


def document() -> dict[str, Any]:
    images = [{"id": i, "file_name": f"{i}.png", "width": w, "height": h} for i, (w, h) in SIZES.items()]
    categories = [{"id": 7, "name": "round"}, {"id": 3, "name": "square", "supercategory": "shape"}]
    return {"info": {}, "images": images, "annotations": copy.deepcopy(BOXES), "categories": categories}


def write(folder: Path) -> Path:
    (folder / "annotations").mkdir()
    for part, images in (("train2017", folder / "train2017"), ("val2017", folder / "images" / "val2017")):
        images.mkdir(parents=True)
        (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(document()))
        for number, (width, height) in SIZES.items():
            pixels = np.zeros((height, width, 3), np.uint8)
            pixels[4:12, 4:24] = 255  # the first box of the first image
            Image.fromarray(pixels).save(images / f"{number}.png")
    return folder


def loaded(folder: Path, size: int = 40) -> DataSource:
    return load_data(f"coco:{folder}?size={size}", task=TASK)


def bright(image: torch.Tensor, source: DataSource) -> list[int]:
    """Return the box around an image's white pixels: left, top, right, bottom."""
    white = torch.nonzero(image[0] > source.test.preprocessing.normalise(torch.full((1, 3, 1, 1), 127.0))[0, 0])
    return [int(white[:, 1].min()), int(white[:, 0].min()), int(white[:, 1].max()) + 1, int(white[:, 0].max()) + 1]


def test_boxes_lie_where_the_objects_are_also_in_flipped_images(tmp_path: Path) -> None:
    source = loaded(write(tmp_path))
    inputs, targets = source.test.batch([0, 1])
    assert inputs.shape == (2, 3, 40, 40)
    assert targets["labels"].tolist() == [[1, 0], [-1, -1]]  # by the order of the ids; no crowd, no empty box
    assert targets["boxes"][0].tolist() == [[4, 4, 24, 12], [0, 0, 40, 20]]
    assert bright(inputs[0], source) == [4, 4, 24, 12]
    assert float(inputs[0, :, 20:].abs().max()) == 0  # filled up with the mean
    found = {}
    for seed in range(8):
        flipped, moved = source.training_batch([0], seed)
        found[tuple(moved["boxes"][0, 0].tolist())] = bright(flipped[0], source)
    assert found == {(4, 4, 24, 12): [4, 4, 24, 12], (16, 4, 36, 12): [16, 4, 36, 12]}


def test_a_smaller_input_scales_images_and_boxes_alike(tmp_path: Path) -> None:
    source = loaded(write(tmp_path), size=20)
    inputs, targets = source.test.batch([0])
    assert targets["boxes"][0, 0].tolist() == [2, 2, 12, 6]
    assert bright(inputs[0], source) == [2, 2, 12, 6]


def test_each_of_two_processes_makes_its_own_samples_of_an_augmented_batch(tmp_path: Path) -> None:
    source = loaded(write(tmp_path))
    indices = [0, 1, 1, 0, 1]
    whole = source.training_batch(indices, 5)
    for share in (slice(0, None, 2), slice(1, None, 2)):
        inputs, targets = source.training_share(indices, 5, share)
        assert torch.equal(inputs, whole[0][share])
        assert torch.equal(targets["boxes"], whole[1]["boxes"][share])


def test_targets_lose_their_filling() -> None:
    targets = {"boxes": torch.arange(16.0).reshape(2, 2, 4), "labels": torch.tensor([[3, -1], [-1, -1]])}
    one, none = unpadded(targets)
    assert (one["boxes"].tolist(), one["labels"].tolist()) == ([[0, 1, 2, 3]], [3])
    assert none["boxes"].shape == (0, 4)
    assert unpadded([{"boxes": 1}]) == [{"boxes": 1}]


def edited(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        found = document()
        edit(found)
        (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(found))

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "annotations" / "instances_val2017.json").unlink(), "no such file: .*instances_val"),
        (lambda folder: (folder / "train2017").rename(folder / "train"), "no such folder: .*train2017, nor .*images"),
        (lambda folder: (folder / "train2017" / "2.png").unlink(), r"no such image: .*2\.png"),
        (edited(lambda d: d["images"][0].update(file_name="../../x.png")), r"'../../x\.png' is no name of a file in"),
        (edited(lambda d: d["annotations"][0].update(bbox=[1, 2, 3])), "annotations.*bbox"),
        (edited(lambda d: d.update(annotations=[{**BOXES[0], "image_id": 9}])), "a box of the image 9 and category 7"),
        (edited(lambda d: d["images"][0].update(id=2)), "two images of one id"),
        (edited(lambda d: d["categories"][0].update(name="disc")), "differ in their categories: disc, round"),
        (edited(lambda d: d.update(images=[], annotations=[])), "names no images"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=said):
        loaded(tmp_path)


def test_without_a_task_object_it_is_said_where_one_is_given(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"give task=csqtool\.task\.Detection\(loss, boxes\)"):
        load_data(f"coco:{write(tmp_path)}")
