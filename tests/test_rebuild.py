from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from csqtool.data import load_data
from csqtool.errors import DataError, ModelError
from csqtool.model_info import DataInfo, ModelFactory, ModelInfo
from csqtool.nn.post_training import post_training_model
from csqtool.quantized_model import QuantizedModel
from csqtool.rebuild import rebuilt_data, rebuilt_module, rebuilt_net

NET = """
from torch import nn
def net(width=3):
    return nn.Linear(4, width)
"""


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


@pytest.fixture
def model(module: nn.Module) -> QuantizedModel:
    return post_training_model(module, [torch.randn(8, 4)], planes=4, act_bits=None)


def recording(model: QuantizedModel, info: ModelInfo) -> QuantizedModel:
    return replace(model, info=info)


def test_a_module_that_is_handed_over_is_copied_and_not_changed(module: nn.Module, model: QuantizedModel) -> None:
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    net = rebuilt_net(model, factory=module)
    assert {name: tensor.tolist() for name, tensor in module.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in before.items()
    }
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    layer = model.layers[0]
    x = torch.randn(5, 4)
    wanted = x @ torch.from_numpy(layer.dequantized()).T + torch.from_numpy(np.array(model.tensors["bias"]))
    torch.testing.assert_close(net(x), wanted)


def test_a_module_that_cannot_be_copied_is_refused(module: nn.Module, model: QuantizedModel) -> None:
    module.generator = (i for i in range(3))  # type: ignore[assignment]
    with pytest.raises(ModelError, match=r"the module Linear cannot be copied \(TypeError"):
        rebuilt_module(model, factory=module)


def test_the_recorded_factory_is_called_with_its_arguments(
    model: QuantizedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    recorded = recording(model, ModelInfo.of(model=ModelFactory("net.py:net", {"width": 5})))
    built = rebuilt_module(recorded)
    assert isinstance(built, nn.Linear)
    assert built.out_features == 5


def test_a_factory_that_is_given_needs_no_recorded_one(model: QuantizedModel, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    assert isinstance(rebuilt_module(model, factory=f"{tmp_path}/net.py:net"), nn.Linear)


@pytest.mark.parametrize(("near", "who"), [(None, "the finalized model"), (Path("m.safetensors"), "m.safetensors")])
def test_what_is_neither_recorded_nor_given_is_asked_for(model: QuantizedModel, near: Path | None, who: str) -> None:
    with pytest.raises(ModelError, match=f"^{who} records no factory of its module; give --model FACTORY, or model="):
        rebuilt_module(model, near=near)
    with pytest.raises(DataError, match=f"^{who} records no data; give --data DATA, or data="):
        rebuilt_data(model, near=near)
    with pytest.raises(DataError, match="records no data"):
        rebuilt_data(recording(model, ModelInfo.of(data=DataInfo(task="classification"))))


def test_data_are_those_given_or_recorded(model: QuantizedModel, tmp_path: Path) -> None:
    recorded = recording(model, ModelInfo.of(data=DataInfo(source="digits", task="classification")))
    assert rebuilt_data(recorded).name == "digits"
    source = load_data("digits")
    assert rebuilt_data(model, data=source) is source
    x, y = np.zeros((2, 4), np.float32), np.zeros((2, 3), np.float32)
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    given = f"npz:{tmp_path}/d.npz"
    regression = recording(model, ModelInfo.of(data=DataInfo(source="digits", task="regression")))
    assert rebuilt_data(regression, data=given).task.name == "regression"
    own = recording(model, ModelInfo.of(data=DataInfo(source="digits", task="mine")))
    assert rebuilt_data(own).task.name == "classification"
