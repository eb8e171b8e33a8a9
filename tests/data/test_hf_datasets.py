from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from csqtool.data import as_source, first_samples, load_data
from csqtool.errors import ConfigError, DataError
from tests.support.images import write_images


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'csqtool\[datasets\]'"):
        load_data(f"hf-datasets:{tmp_path}")


@pytest.fixture
def datasets() -> Iterator[Any]:
    library = pytest.importorskip("datasets")
    library.disable_progress_bars()
    yield library
    library.enable_progress_bars()


def saved(datasets: Any, folder: Path, features: Any = None, **splits: dict[str, list[Any]]) -> str:
    made = {name: datasets.Dataset.from_dict(columns, features=features) for name, columns in splits.items()}
    datasets.DatasetDict(made).save_to_disk(str(folder))
    return f"hf-datasets:{folder}"


def images_of(folder: Path, part: str) -> dict[str, list[Any]]:
    files = [(label, f) for label, name in enumerate(("cat", "dog")) for f in sorted((folder / part / name).iterdir())]
    return {"image": [{"bytes": f.read_bytes(), "path": None} for _, f in files], "label": [n for n, _ in files]}


class Tokens(nn.Module):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return input_ids.float() * attention_mask


def test_images_with_classes_give_what_an_image_folder_gives(datasets: Any, tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
    parts = {part: images_of(tmp_path / "images", part) for part in ("train", "val")}
    stored = load_data(f"{saved(datasets, tmp_path / 'saved', features, **parts)}?size=16&resize=20")
    files = load_data(f"imagefolder:{tmp_path / 'images'}?size=16&resize=20")
    for ours, theirs in ((stored.training_batch(range(6), 3), files.training_batch(range(6), 3)),
                         (stored.test.batch(range(4)), files.test.batch(range(4)))):  # fmt: skip
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


def test_columns_of_numbers_are_the_models_arguments_and_the_tasks_labels(datasets: Any, tmp_path: Path) -> None:
    columns = {"text": ["a b", "c d"], "input_ids": [[1, 2], [3, 4]], "attention_mask": [[1, 1], [1, 0]],
               "label": [0, 1]}  # fmt: skip
    source = load_data(saved(datasets, tmp_path / "saved", train=columns, test=columns)).for_model(Tokens())
    inputs, targets = first_samples(source.train)
    assert {name: tensor.tolist() for name, tensor in inputs.items()} == {
        "input_ids": [[1, 2], [3, 4]], "attention_mask": [[1, 1], [1, 0]]
    }  # fmt: skip
    assert targets["label"].tolist() == [0, 1]
    assert float(source.task.loss(torch.eye(2) * 9, targets)) < 0.01


def test_a_data_set_that_is_handed_over_is_read_row_by_row(datasets: Any) -> None:
    columns = {"input_ids": [[1, 2], [3, 4]], "attention_mask": [[1, 1], [1, 0]], "label": [0, 1]}
    given = datasets.Dataset.from_dict(columns).with_format("torch")
    source = as_source(train=given, test=given).for_model(Tokens())
    inputs, targets = first_samples(source.test)
    assert sorted(inputs) == ["attention_mask", "input_ids"]
    assert targets["label"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("splits", "options", "error", "said"),
    [
        ({"train": {"x": [1.0]}}, "", DataError, "has no split validation, but train"),
        ({"train": {"x": ["a"]}, "test": {"x": ["a"]}}, "", DataError, "holds no numbers; its columns are x"),
        ({"train": {"x": [1.0]}, "test": {"x": [1.0]}}, "?size=8", ConfigError, "holds no images"),
    ],
)
def test_what_is_missing_is_said(
    datasets: Any, tmp_path: Path, splits: dict[str, Any], options: str, error: type[Exception], said: str
) -> None:
    spec = saved(datasets, tmp_path / "saved", **splits)
    with pytest.raises(error, match=said):
        load_data(f"{spec}{options}")


def test_another_folder_and_a_row_without_an_image_are_refused(datasets: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty is no folder of data sets: .*; put what DatasetDict\.save_to_disk"):
        load_data(f"hf-datasets:{tmp_path / 'empty'}")
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    columns = {"image": [None, None], "label": [0, 1]}
    source = load_data(saved(datasets, tmp_path / "saved", features, train=columns, test=columns))
    with pytest.raises(DataError, match=r"cannot read the image hf-datasets:.*, train, row 1: the row holds no image"):
        source.train.batch([1])
