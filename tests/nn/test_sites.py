from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from csqtool.errors import ExportError
from csqtool.nn.activation import LARGEST_CHANGE, WIDEST, ActivationFakeQuantizer
from csqtool.nn.activation_variants import DorefaQuantizer, DynamicQuantizer, PactQuantizer
from csqtool.nn.quantized_net import ObservingMode, QuantizedNet
from csqtool.nn.sites import Call
from tests.support.networks import IgnoredResults, shared_activation
from tests.support.onnx_nets import export_module


class Shift(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        x.add_(1.0)  # nobody takes the result
        return x * 1.0


@pytest.mark.parametrize("kind", [ActivationFakeQuantizer, PactQuantizer, DorefaQuantizer, DynamicQuantizer])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_quantized_activation_can_be_changed_in_place(
    kind: type[ActivationFakeQuantizer], layout: torch.memory_format
) -> None:
    x = torch.rand(2, 3, 4, 5).contiguous(memory_format=layout).requires_grad_()
    quantized = kind("a", 4)(x)
    assert quantized.is_contiguous(memory_format=layout)
    quantized += 1
    torch.relu_(quantized).sum().backward()
    assert x.grad is not None


def test_later_uses_of_what_was_changed_in_place_see_what_takes_its_place() -> None:
    quantizer = ActivationFakeQuantizer("add.output", 4)
    net = QuantizedNet(Shift(), [quantizer])
    assert net(torch.tensor([0.3])).item() == 1.0  # 1.3 in steps of one


def test_a_shared_module_has_one_path_and_its_quantizers_survive_the_capture() -> None:
    export = export_module(shared_activation(), (3, 8, 8), act_bits=8)
    export.assert_faithful()
    assert export.operators().count("QLinearConv") == 3


def test_in_place_calls_whose_result_is_ignored_are_quantized_in_every_mode() -> None:
    torch.manual_seed(0)
    export = export_module(IgnoredResults(), (3, 8, 8), act_bits=8)
    export.assert_faithful()
    assert export.operators().count("QLinearConv") == 3


class Branches(nn.Module):
    """Results that are added up by Python's sum(), which begins with 0 + x, and others that are taken times one."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([nn.Conv2d(3, 4, 3) for _ in range(2)])
        self.middle, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        branches = [branch(x) for branch in self.branches]
        return self.last(self.middle(sum(branches)) * 1.0)


def test_operations_that_change_nothing_get_no_quantizer_or_leave_the_names_of_those_around_them() -> None:
    torch.manual_seed(0)
    export = export_module(Branches(), (3, 6, 6), act_bits=8)
    names = [quantizer.name for quantizer in export.model.activations]
    assert "add.output" not in names
    assert {"branches.0.output", "branches.1.output", "add@2.output", "middle.output", "mul.output"} < set(names)
    export.assert_faithful()


def test_a_quantizer_that_the_capture_lost_stops_the_export(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ObservingMode.on_call

    def lost(mode: ObservingMode, call: Call, args: Any, kwargs: Any, output: Any) -> Any:
        return output if torch.compiler.is_exporting() else found(mode, call, args, kwargs, output)

    monkeypatch.setattr(ObservingMode, "on_call", lost)
    with pytest.raises(ExportError, match=r"activation quantizers are not in the captured graph: 0\.act\.output"):
        export_module(shared_activation(), (3, 8, 8), act_bits=8)


def test_a_scale_changes_by_limited_steps_and_dies_at_the_end_of_its_range() -> None:
    quantizer = ActivationFakeQuantizer("a", 8)
    quantizer.calibrate(torch.rand(100))
    calibrated = float(quantizer.scale.detach())
    quantizer(torch.rand(4))
    quantizer.scale.data.fill_(249)
    quantizer.after_step()
    assert float(quantizer.scale.detach()) == pytest.approx(calibrated * (1 + LARGEST_CHANGE))
    assert not quantizer.is_dead()
    for _ in range(400):
        quantizer(torch.rand(4))
        quantizer.scale.data.fill_(-1)
        quantizer.after_step()
    assert float(quantizer.scale.detach()) == pytest.approx(calibrated / WIDEST)
    assert quantizer.is_dead()


def test_what_the_owner_froze_stays_in_evaluation_mode() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval(), nn.Dropout())
    QuantizedNet(model, []).train()
    assert [module.training for module in model] == [True, False, True]
    assert all(module.training for module in QuantizedNet(model.eval(), []).train().model)
