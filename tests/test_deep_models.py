"""Networks of hundreds of layers, and of more weights than protobuf can hold, on the whole way."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import csqtool
from csqtool.errors import ExportError
from csqtool.model_info import Input, ModelInfo
from csqtool.nn.post_training import post_training_model
from csqtool.quantized_model import QuantizedLayer, QuantizedModel
from exporters import onnx as onnx_exporter
from exporters.onnx.capture import CAPTURE_OPSET, capture, capture_float
from exporters.onnx.cleanup import tidy
from exporters.onnx.float_size import float32_size
from tests.support.onnx_nets import ConvNet


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)) + x)


def chain(depth: int) -> nn.Module:
    """A residual chain whose values neither vanish nor grow."""
    torch.manual_seed(0)
    net = nn.Sequential(*(Block(2) for _ in range(depth)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.01)
    return net.eval()


@pytest.mark.parametrize(
    ("depth", "act_bits"),
    [
        pytest.param(20, 8, marks=pytest.mark.long),
        *(pytest.param(depth, bits, marks=pytest.mark.slow) for depth in (120, 400) for bits in (None, 8)),
    ],
)
def test_a_residual_chain_is_exported_packed_and_verified(depth: int, act_bits: int | None, tmp_path: Path) -> None:
    net = chain(depth)
    inputs = torch.randn(8, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    model = post_training_model(net, [inputs], act_bits=act_bits)
    data = [(x, 0) for x in inputs]
    for name in ("model.onnx", "model.csq"):
        csqtool.export(model, tmp_path / name, model=net)
        report = csqtool.verify(tmp_path / name, model, model=net, data=data)
        assert report.passed, report.failures


@pytest.mark.slow
def test_the_float32_size_is_that_of_the_file_that_torch_writes() -> None:
    for net, shape in ((ConvNet(), (3, 8, 8)), (nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), (5, 4))):
        for act_bits in (8, None):
            model = post_training_model(net.eval(), [torch.randn(4, *shape)], act_bits=act_bits)
            captured = capture(model, copy.deepcopy(net), ())
            before = ir.to_proto(captured)
            written = capture_float(model, copy.deepcopy(net))
            tidy(written, {})
            proto = ir.to_proto(written)
            del proto.graph.value_info[:]
            assert abs(float32_size(captured, model) - proto.ByteSize()) <= 8  # torch numbers its constants
            assert ir.to_proto(captured) == before  # what is exported is not touched


def huge(elements: int) -> tuple[ir.Model, QuantizedModel]:
    """A graph with one marker of a weight that would take 4 · `elements` bytes in float32."""
    q = np.broadcast_to(np.int8(1), (1, elements))
    model = QuantizedModel(
        (QuantizedLayer("w", q, np.float32(1), "1"),), (), {}, info=ModelInfo.of(inputs=[Input("input", (1,))])
    )
    x = ir.Value(name="input", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", 1]))
    weight = ir.node("Weight", [], {"name": "w"}, domain="csqtool.marker")
    product = ir.node("MatMul", [x, weight.outputs[0]])
    product.outputs[0].name = "output"
    graph = ir.Graph(
        [x], [product.outputs[0]], nodes=[weight, product], name="main",
        opset_imports={"": CAPTURE_OPSET, "csqtool.marker": 1},
    )  # fmt: skip
    return ir.Model(graph, ir_version=10), model


def test_the_float32_size_may_exceed_what_protobuf_holds() -> None:
    small, large = (float32_size(*huge(elements)) for elements in (1, 1 << 30))
    assert 0 <= large - small - (4 << 30) < 40


def test_a_file_that_protobuf_cannot_hold_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = ConvNet().eval()
    model = post_training_model(net, [torch.randn(4, 3, 8, 8)], act_bits=8)
    (tmp_path / "model.onnx").write_bytes(b"old")
    monkeypatch.setattr(onnx_exporter, "MAX_PROTOBUF_BYTES", 1000)
    with pytest.raises(ExportError, match="protobuf carries at most 2 GB"):
        csqtool.export(model, tmp_path / "model.onnx", model=net)
    assert (tmp_path / "model.onnx").read_bytes() == b"old"


def test_an_export_captures_the_network_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(3, 2)).eval()
    model = post_training_model(net, [torch.randn(4, 3)], act_bits=None)
    captures = []
    original = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda *a, **k: captures.append(1) or original(*a, **k))
    done = csqtool.export(model, tmp_path / "model.onnx", model=net)
    assert captures == [1]
    assert done.float32_bytes > 24
