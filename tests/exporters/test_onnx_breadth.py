from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that everybody knows
from torch import Tensor, nn

from csqtool.benchmarking import bench, input_shapes
from csqtool.errors import ConfigError, ExportError
from csqtool.nn.finalized_net import finalized_net
from csqtool.nn.post_training import post_training_model
from csqtool.nn.signature import named_outputs, recorded_inputs
from csqtool.onnx_file import stored_tensors
from csqtool.onnx_session import session
from exporters.onnx import OnnxOptions, to_onnx
from tests.support.commands import invoke, ok
from tests.support.onnx_nets import ConvNet, Export, export_module


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.norm(x).mean(1))


class TiedEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.embedding(x)).mean(1))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(F.linear(x, self.first.weight, self.first.bias))
        return F.linear(h, self.second.weight) + F.relu(self.first(x)) @ self.second.weight.t()


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(5, 8)
        self.c, self.d = nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        h = torch.relu(self.a(x) + self.b(y))
        return {"logits": self.c(h), "box": self.d(h)}


class Activated(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.conv1, self.activation = nn.Conv2d(3, 8, 3, padding=1), activation
        self.conv2, self.pool = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.AvgPool2d(2)
        self.head = nn.Linear(72, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(self.activation(self.conv1(x))))
        return self.head(torch.flatten(self.pool(x), 1))


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.pool = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1), nn.MaxPool2d(2)
        self.head = nn.Linear(144, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], 1)
        return self.head(torch.flatten(self.pool(x), 1))


class Recurrent(nn.Module):
    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Repeated(nn.Module):
    """One layer in each repetition, as in ALBERT: each use has an input quantizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(torch.relu(self.layer(x)))))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.head(x)
        return self.head(-x)


NETS = {
    "conv1d": (nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4)), (3, 12),
               {"QLinearConv": 1, "QGemm": 1}),
    "conv3d": (nn.Sequential(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.Flatten(), nn.Linear(108, 3)),
               (2, 5, 5, 5), {"QLinearConv": 1, "QGemm": 1}),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(3, 8, 2, stride=2), nn.BatchNorm2d(8), nn.ReLU(),
                                 nn.Conv2d(8, 2, 3)), (3, 5, 5), {"ConvTranspose": 1, "BatchNormalization": 1}),
    "linear batch norm": (nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)), (6,),
                          {"QGemm": 2}),
    "batch norm before": (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(),
                                        nn.Linear(128, 3)), (3, 6, 6),
                          {"BatchNormalization": 1, "QLinearConv": 1, "QGemm": 1}),
    "linear on sequences": (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8)), (5, 6),
                            {"MatMulIntegerToFloat": 2}),
    "one layer repeated": (Repeated(), (5, 6), {"MatMulIntegerToFloat": 3}),
    "relu6": (Activated(nn.ReLU6()), (3, 6, 6), {"QLinearConv": 2, "QLinearAveragePool": 1, "QGemm": 1}),
    "clamp": (Activated(nn.Hardtanh(-0.2, 0.3)), (3, 6, 6), {"QLinearConv": 2, "QLinearAveragePool": 1, "QGemm": 1}),
    "hardswish": (Activated(nn.Hardswish()), (3, 6, 6), {"QLinearConv": 2, "QLinearAveragePool": 1, "HardSigmoid": 1}),
    "concatenation": (Concatenated(), (3, 6, 6), {"QLinearConv": 2, "QLinearConcat": 1, "QGemm": 1}),
    "attention": (Attention(), (4, 6), {"Softmax": 1, "LayerNormalization": 1}),
    "lstm": (Recurrent(nn.LSTM(6, 8, batch_first=True)), (4, 6), {"LSTM": 1, "QGemm": 1, "DequantizeLinear": 0}),
    "gru": (Recurrent(nn.GRU(6, 4, 2, batch_first=True, bidirectional=True)), (4, 6),
            {"GRU": 2, "QGemm": 1, "DequantizeLinear": 0}),
    "functional": (Functional(), (6,), {"QGemm": 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.long] if n == "gru" else []) for n in NETS])
@pytest.mark.parametrize("act_bits", [None, 8])
def test_a_pattern_is_faithful_and_runs_on_the_kernels_that_exist(name: str, act_bits: int | None) -> None:
    net, shape, kernels = NETS[name]
    torch.manual_seed(0)
    export = export_module(copy.deepcopy(net), shape, act_bits=act_bits)
    export.assert_faithful()
    if act_bits is not None:
        operators = export.operators()
        assert {kernel: operators.count(kernel) for kernel in kernels} == kernels
        in_float = {node.operator for node in export.report.float_nodes}
        assert in_float.isdisjoint({"QLinearConv", "QGemm"})
        for kernel in ("ConvTranspose", "BatchNormalization", "LSTM", "GRU", "Softmax", "HardSigmoid"):
            assert (kernel in operators) == (kernel in in_float)


@pytest.mark.parametrize("kind", ["tied", "two inputs"])
@pytest.mark.parametrize("act_bits", [None, 8])
def test_tied_weights_integer_inputs_and_several_inputs_and_outputs(kind: str, act_bits: int | None) -> None:
    torch.manual_seed(0)
    net: nn.Module
    if kind == "tied":
        net, inputs = TiedEmbedding(), (torch.randint(0, 11, (8, 5)),)
    else:
        net, inputs = TwoInputs(), (torch.randn(8, 6), torch.randn(8, 5))
    net.eval()
    model = post_training_model(net, [inputs], act_bits=act_bits)
    content, report = to_onnx(model, copy.deepcopy(net))
    finalized = finalized_net(copy.deepcopy(net), model)
    with torch.no_grad():
        wanted = named_outputs(finalized(*inputs))
    feeds = {i.name: x.numpy() for i, x in zip(recorded_inputs(model.info), inputs, strict=True)}
    assert Export(model, finalized, content, report, inputs[0]).problems() == []
    for optimization in ("off", "on"):
        loaded = session(content, optimization)
        names = [o.name for o in loaded.get_outputs()]
        assert names == list(wanted)
        for name, found in zip(names, loaded.run(None, feeds), strict=True):
            assert np.abs(found - wanted[name].numpy()).max() < 1e-5
    stored = [name for name, _ in stored_tensors(Export(model, finalized, content, report, inputs[0]).proto)]
    assert sum(name.endswith("weight.stream") for name in stored) == (1 if kind == "tied" else 4)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_an_lstm_with_projections_is_refused_in_one_line() -> None:
    with pytest.raises(ExportError, match=r"^rnn: LSTM with projections \(proj_size=8\): ONNX's LSTM has none"):
        export_module(Recurrent(nn.LSTM(6, 9, batch_first=True, proj_size=8)), (4, 6))


def test_control_flow_on_values_stops_and_names_the_line() -> None:
    with pytest.raises(ExportError, match=r"control flow depends on values .*test_onnx_breadth\.py.*if x\.sum"):
        export_module(Branching(), (6,))


def test_axes_are_dynamic_where_asked() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    export = export_module(net, (3, 8, 8), dynamic=(2, 3))
    export.inputs = torch.randn(3, 3, 11, 9)
    export.assert_faithful()


def test_bench_takes_the_sizes_of_dynamic_axes(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    path = tmp_path / "m.onnx"
    path.write_bytes(export_module(net, (3, 8, 8), dynamic=(2, 3)).content)
    with pytest.raises(ConfigError, match=r"axis_3 \(axis 3 of input\) is dynamic: give its size, .*--size axis_3="):
        bench([path], sizes={"2": 9}, rounds=1, loads=1)
    loaded = session(path.read_bytes())
    assert input_shapes(loaded, 2, {"2": 9, "axis_3": 7})["input"] == [2, 3, 9, 7]
    ok("bench", path, "--batch", 1, "--size", "axis_2=9", "--size", "3=7", "--rounds", 1, "--json")
    assert invoke("bench", path, "--size", "9").exit_code == 2


def test_graphs_hold_no_leftovers_of_the_capture() -> None:
    proto = export_module(*NETS["relu6"][:2], act_bits=8).proto
    assert not proto.graph.doc_string
    assert not any(node.doc_string or node.metadata_props for node in proto.graph.node)
    assert not any(value.metadata_props for value in (*proto.graph.input, *proto.graph.output))
    assert not any(t.name.startswith("model.") for t in proto.graph.initializer)
    assert {p.key for p in proto.metadata_props} == {"csqtool.version", "csqtool.finalized_sha256"}
    used = {name for node in proto.graph.node for name in node.input}
    assert {t.name for t in proto.graph.initializer} <= used


def test_a_product_that_quantizes_its_input_by_itself_is_told_of() -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(32, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x)

    foldable, qdq = (export_module(Sequence(), (5, 32), weight_form=form) for form in ("foldable", "qdq"))
    assert not foldable.report.notes
    assert "MatMulNBits" in qdq.operators()
    assert "1 of the linear layers run as MatMulNBits" in qdq.report.notes[0]
    assert np.abs(qdq.onnxruntime_output() - qdq.torch_output()).max() > 1e-4  # what the note warns of


@pytest.mark.parametrize("excluded", ["conv1", "depthwise", "conv2", "classifier"])
def test_a_layer_left_in_float_is_computed_in_float_and_listed(excluded: str) -> None:
    # onnxruntime would quantize its weight by itself, between quantized activations.
    torch.manual_seed(0)
    net = ConvNet()
    batches = [torch.randn(16, 3, 8, 8)]
    model = post_training_model(net, batches, act_bits=8, exclude=(f"{excluded}.*",))
    content, report = to_onnx(model, copy.deepcopy(net), OnnxOptions(weights="int8"))
    export = Export(model, finalized_net(copy.deepcopy(net), model), content, report, batches[0])
    export.assert_faithful()
    assert np.abs(export.onnxruntime_output() - export.onnxruntime_output("off")).max() < 1e-2
    assert {node.operator for node in report.float_nodes} & {"Conv", "FusedConv", "Gemm"}


def test_no_runtime_quantizes_the_float_input_of_a_layer_among_quantized_ones_by_itself() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.attention = nn.LayerNorm(32), nn.MultiheadAttention(32, 2, batch_first=True)
            self.head = nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            normed = self.norm(x)
            return self.head(x + self.attention(normed, normed, normed, need_weights=False)[0])

    torch.manual_seed(0)
    export = export_module(Block(), (5, 32), act_bits=8)
    assert {layer.input_quantizer is None for layer in export.model.layers} == {False, True}
    assert "MatMulNBits" not in export.operators()
    export.assert_faithful()


def test_a_model_that_computes_otherwise_in_an_export_is_exported_as_it_was_quantized() -> None:
    class Pooled(nn.Module):  # such as the pyramid of PSPNet
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv2d(3, 4, 3), nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Conv2d(4, 3, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.conv(x))
            if torch.onnx.is_in_onnx_export():
                return self.pool[1](F.interpolate(x, size=(2, 2), mode="area"))
            return self.pool(x)

    torch.manual_seed(0)
    export_module(Pooled(), (3, 6, 6), act_bits=8).assert_faithful()
    assert not torch.onnx.is_in_onnx_export()


@pytest.mark.parametrize("normalized", [False, True])
def test_a_bias_beyond_int32_does_not_overflow_in_the_runtime(normalized: bool) -> None:
    # Detectors start with large biases on small values; onnxruntime would write such a bias as an int32 by itself.
    torch.manual_seed(0)
    shifted = nn.BatchNorm2d(3) if normalized else nn.Conv2d(4, 3, 1)
    before = nn.Conv2d(4, 3, 1, bias=False) if normalized else nn.Identity()
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), before, shifted, nn.Conv2d(3, 2, 1))
    net[0].weight.data *= 1e-8
    nn.init.constant_(shifted.bias, 2)
    export = export_module(net, (3, 6, 6), act_bits=8)
    assert float(np.ptp(export.torch_output()[:, 0])) < 0.1
    export.assert_faithful()


def test_a_size_for_an_axis_that_is_not_dynamic_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(export_module(ConvNet(), (3, 8, 8)).content)
    with pytest.raises(ConfigError, match="size of axis 3: no file has such a dynamic axis; those are 0, batch"):
        bench([tmp_path / "m.onnx"], sizes={"3": 4}, rounds=1, loads=1)
