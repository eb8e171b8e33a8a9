from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from csqtool.errors import FormatError, InputError, ModelError
from csqtool.nn.state_dict import check_keys, load_state, load_weights, read_state, safetensors_bytes


@pytest.mark.parametrize("nest", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("zipped", [True, False])  # torch wrote plain pickles before 1.6
def test_weights_load_from_nested_checkpoints_with_and_without_a_prefix(
    tmp_path: Path, zipped: bool, prefix: str, nest: str | None
) -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    state = {prefix + name: value for name, value in source.state_dict().items()}
    content = {nest: state, "epoch": 3} if nest else state
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    load_weights(target, tmp_path / "w.pt")
    assert torch.equal(target.weight, source.weight)


def test_a_checkpoint_without_batch_counters_loads(tmp_path: Path) -> None:
    source, target = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    source.running_mean.fill_(2.0)
    state = {k: v for k, v in source.state_dict().items() if k != "num_batches_tracked"}
    (tmp_path / "w.safetensors").write_bytes(safetensors_bytes(state))
    load_weights(target, tmp_path / "w.safetensors")
    assert torch.equal(target.running_mean, source.running_mean)


def test_all_that_does_not_match_is_listed_at_once() -> None:
    own = {"a": (2, 3), "b": (4,), **{f"layer{i}": (1,) for i in range(10)}}
    with pytest.raises(ModelError) as error:
        check_keys(own, {"a": (3, 2), "c": ()}, "w.pt", "the model")
    text = str(error.value)
    assert text.startswith("w.pt does not match the model: missing b, layer0, layer1")
    assert "and 3 more" in text
    assert "unexpected c" in text
    assert "a has shape [3, 2] instead of [2, 3]" in text
    check_keys(own, dict(own), "w.pt", "the model")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_files_that_hold_no_state_dict_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(InputError):
        read_state(path)
    path.write_bytes(b"neither of them")
    with pytest.raises(FormatError, match=name):
        read_state(path)


def test_a_torch_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="no state dict"):
        read_state(tmp_path / "w.pt")


class Versioned(nn.Linear):
    """Refuses a state dict without a version, as MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: dict[str, Any], *more: Any) -> None:
        if metadata.get("version") != 2:
            raise ValueError(f"Version should be 2, got {metadata.get('version')}")
        super()._load_from_state_dict(state, prefix, metadata, *more)


def test_versions_of_modules_are_kept_or_taken_from_the_model(tmp_path: Path) -> None:
    model = nn.Sequential(Versioned(2, 3))
    torch.save(model.state_dict(), tmp_path / "w.pt")
    (tmp_path / "w.safetensors").write_bytes(safetensors_bytes(model.state_dict()))
    for name in ("w.pt", "w.safetensors"):
        load_weights(nn.Sequential(Versioned(2, 3)), tmp_path / name)
    old = model.state_dict()
    old._metadata["0"]["version"] = 1
    with pytest.raises(ModelError, match="Version should be 2, got 1"):
        load_state(model, old, "old.pt")


def test_a_state_dict_with_numbers_for_names_is_refused(tmp_path: Path) -> None:
    torch.save({0: torch.zeros(2)}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt holds no state dict of tensors by name"):
        read_state(tmp_path / "w.pt")
