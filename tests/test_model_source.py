from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from csqtool.errors import InputError, ModelError
from csqtool.model_source import ModelSource

FACTORY = "from torch import nn\ndef net(width=2):\n    return nn.Linear(width, 1).eval()\n"


def test_a_module_is_copied_each_time_and_stays_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval()
    source = ModelSource.of(module)
    one, other = source.build(), source.build()
    assert one is not module
    assert one is not other
    with torch.no_grad():
        one[0].weight.zero_()
    assert not torch.equal(module[0].weight, one[0].weight)
    assert torch.equal(module[0].weight, other[0].weight)
    assert not one.training


def test_a_factory_is_called_each_time_with_its_arguments(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FACTORY)
    source = ModelSource.of(f"{tmp_path}/net.py:net", {"width": 5})
    one, other = source.build(), source.build()
    assert one is not other
    assert one.in_features == 5
    assert not one.training


def test_a_factory_s_file_is_found_near_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "near_net.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    source = ModelSource.of("near_net.py:net")
    with pytest.raises(InputError, match="no such file"):
        source.build()
    (tmp_path / "project" / "pipeline.toml").touch()  # the project that the file belongs to
    assert source.build(near=tmp_path / "project" / "build" / "m.safetensors").in_features == 2


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (3, None, "the model is int: give a torch.nn.Module, or the name of a factory"),
        (nn.Linear, None, "the model is type: give a torch.nn.Module"),
        (nn.Linear(1, 1), {"width": 1}, "model_args are arguments of a factory that is given by name"),
    ],
)
def test_what_is_no_model_is_refused(model: object, arguments: dict[str, object] | None, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ModelSource.of(model, arguments)  # type: ignore[arg-type]


def test_a_module_that_cannot_be_copied_asks_for_a_factory() -> None:
    module = nn.Linear(1, 1)
    module.lock = threading.Lock()
    with pytest.raises(ModelError, match=r"Linear cannot be copied .*; give a factory that builds it"):
        ModelSource.of(module).build()


def test_a_source_of_nothing_says_that_no_model_is_given() -> None:
    with pytest.raises(ModelError, match="no model is given"):
        ModelSource().build()
