from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor, nn

from csqtool.errors import ExportError
from csqtool.exporting import ExportReport, format_of
from csqtool.nn.finalized_net import finalized_net
from csqtool.nn.post_training import post_training_model
from csqtool.onnx_isolated import qonnx_facts, qonnx_outputs
from csqtool.quantized_model import QuantizedModel, smallest_dtype
from exporters.qonnx import to_qonnx
from tests.support.onnx_nets import ConvNet

DOMAIN = "qonnx.custom_op.general"
_captures: dict[tuple[type, bool], bytes] = {}


@pytest.fixture(autouse=True)
def capture_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capture each network once: its graph does not depend on integers, scales and zero points."""
    from exporters.onnx import capture

    captured = capture.capture

    def once(model: QuantizedModel, module: Any, dynamic: tuple[int, ...]) -> ir.Model:
        key = type(module), bool(model.activations)
        if key not in _captures:
            _captures[key] = ir.to_proto(captured(model, module, dynamic)).SerializeToString()
        return ir.from_proto(onnx.ModelProto.FromString(_captures[key]))

    monkeypatch.setattr(capture, "capture", once)


class Quant(OpRun):
    """The operator as its specification has it."""

    op_domain = DOMAIN

    def _run(self, x: Any, scale: Any, zero_point: Any, bits: Any, signed: int, narrow: int, rounding_mode: str) -> Any:
        assert rounding_mode == "ROUND"
        low, high = (-(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1 - narrow)
        y = np.rint(np.clip(x / scale + zero_point, low, high))
        return (((y - zero_point) * scale).astype(np.float32),)


class BipolarQuant(OpRun):
    op_domain = DOMAIN

    def _run(self, x: Any, scale: Any) -> Any:
        return (np.where(x >= 0, scale, -scale).astype(np.float32),)


@dataclasses.dataclass
class Exported:
    model: QuantizedModel
    proto: onnx.ModelProto
    report: ExportReport
    inputs: Tensor
    wanted: np.ndarray

    def nodes(self, operator: str) -> list[onnx.NodeProto]:
        return [node for node in self.proto.graph.node if node.op_type == operator]

    def constant(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(next(t for t in self.proto.graph.initializer if t.name == name))

    def quant(self, output: str) -> dict[str, Any]:
        """Return what a quantizer says of its integers."""
        node = next(node for node in self.proto.graph.node if output in node.output)
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        numbers = [float(self.constant(name)) for name in node.input[2:]]
        return {**given, **dict(zip(("zero_point", "bits"), numbers, strict=False))}

    def output(self) -> np.ndarray:
        """Return what the file's operators give by their definitions, a sample at a time."""
        run = ReferenceEvaluator(self.proto, new_ops=[Quant, BipolarQuant])
        name = self.proto.graph.input[0].name
        return np.concatenate([run.run(None, {name: x[None]})[0] for x in self.inputs.numpy()])

    def assert_same(self, found: np.ndarray) -> None:
        """Float32 rounding; with quantizers, which may turn it into single steps, a small mean difference."""
        spread = float(np.abs(self.wanted).max())
        assert found.shape == self.wanted.shape
        if self.model.activations:
            assert np.abs(found - self.wanted).mean() <= 0.005 * spread
        else:
            assert np.abs(found - self.wanted).max() <= 1e-5 * spread


def exported(
    network: type[nn.Module], shape: tuple[int, ...], *, act_bits: int | None = 4, change: Any = None, low: float = -1.0
) -> Exported:
    torch.manual_seed(0)
    module = network().eval()
    inputs = torch.rand(16, *shape, generator=torch.Generator().manual_seed(0)) * (1 - low) + low
    model = post_training_model(module, [inputs], planes=2, act_bits=act_bits)
    model = change(model) if change else model
    content, report = to_qonnx(model, copy.deepcopy(module))
    net = finalized_net(copy.deepcopy(module), model)
    with torch.no_grad():
        wanted = net(inputs[:4]).numpy()
    return Exported(model, onnx.load_from_string(content), report, inputs[:4], wanted)


def changed_activation(model: QuantizedModel, name: str, **changes: Any) -> QuantizedModel:
    activations = [dataclasses.replace(a, **changes) if a.name == name else a for a in model.activations]
    return dataclasses.replace(model, activations=tuple(activations))


def with_integers(*integers: list[int]) -> Any:
    """Return a change of a model: the layers in order hold these integers, over and over."""

    def change(model: QuantizedModel) -> QuantizedModel:
        layers = [
            dataclasses.replace(layer, q=smallest_dtype(np.resize(np.array(q), layer.shape)))
            for layer, q in zip(model.layers, integers, strict=True)
        ]
        return dataclasses.replace(model, layers=tuple(layers))

    return change


@pytest.mark.parametrize("act_bits", [pytest.param(None, marks=pytest.mark.long), 4, 8])
def test_the_operators_give_by_their_definitions_what_pytorch_computes(act_bits: int | None) -> None:
    export = exported(ConvNet, (3, 6, 6), act_bits=act_bits)
    export.assert_same(export.output())
    assert ("activations are float" in export.report.notes[0]) == (act_bits is None)


def test_quantizers_state_each_layers_bits_range_and_sign() -> None:
    integers = [-1, 0, 1], [-8, 7, 3], [-1, 1, 1], [-7, 7, 0]
    export = exported(ConvNet, (3, 6, 6), change=with_integers(*integers))
    names = [layer.name for layer in export.model.layers]
    assert export.report.storage == dict(zip(names, ["Quant 2", "Quant 4", "BipolarQuant", "Quant 4"], strict=True))
    assert [int(export.quant(f"{name}_quant")["narrow"]) for name in (names[0], names[1], names[3])] == [1, 0, 1]
    assert export.quant(f"{names[2]}_quant") == {}
    export.assert_same(export.output())


def test_one_signed_bit_is_never_stated_for_integers_with_a_zero() -> None:
    # Readers take it for −1 and 1.
    export = exported(ConvNet, (3, 6, 6), change=with_integers([-1, 0], [0], [1, 1], [-1]))
    assert [export.quant(f"{layer.name}_quant").get("bits") for layer in export.model.layers] == [2, 2, None, None]


@pytest.mark.parametrize(
    ("zero_point", "wanted"), [(0, (0, 0.0)), (8, (1, 0.0)), (5, (0, 5.0))], ids=["none", "middle", "other"]
)
def test_a_zero_point_in_the_middle_becomes_a_signed_quantizer(zero_point: int, wanted: tuple[int, float]) -> None:
    name = "relu@2.output"
    export = exported(ConvNet, (3, 6, 6), change=lambda m: changed_activation(m, name, zero_point=zero_point))
    found = export.quant(name)
    assert (found["signed"], found["zero_point"], found["bits"]) == (*wanted, 4.0)
    export.assert_same(export.output())


def test_an_unsigned_quantizer_comes_after_a_relu() -> None:
    # FINN takes it in no other place; it changes nothing.
    export = exported(ConvNet, (3, 6, 6), low=0.0)
    makers = {output: node for node in export.proto.graph.node for output in node.output}
    unsigned = [n for n in export.nodes("Quant") if not export.quant(n.output[0])["signed"]]
    unsigned = [n for n in unsigned if not export.quant(n.output[0])["zero_point"]]
    assert any(n.output[0] == "conv1.input" for n in unsigned)
    assert {makers[n.input[0]].op_type for n in unsigned} == {"Relu"}
    export.assert_same(export.output())


class Tied(nn.Module):
    """One convolution used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(torch.relu(self.conv(x)))).mean((2, 3)))


@pytest.mark.long
def test_every_use_of_a_weight_has_a_quantizer_of_its_own() -> None:
    export = exported(Tied, (2, 5, 5))
    weights = [n for n in export.nodes("Quant") if n.input[0] == "conv.weight"]
    assert len(weights) == 2
    for node in export.nodes("Quant"):
        if node.input[0].endswith("weight"):
            assert sum(node.output[0] in other.input for other in export.proto.graph.node) == 1
    export.assert_same(export.output())


def test_converters_find_a_batch_of_one_scalars_and_every_attribute() -> None:
    export = exported(ConvNet, (3, 6, 6))
    assert [d.dim_value for d in export.proto.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 6, 6]
    assert export.proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value == 1
    for node in export.nodes("Quant"):
        assert [export.constant(name).shape for name in node.input[1:]] == [(), (), ()]
    for node in export.nodes("Conv"):
        assert {a.name for a in node.attribute} >= {"kernel_shape", "strides", "pads", "dilations", "group"}
    assert [n.op_type for n in export.proto.graph.node].count(
        "BatchNormalization"
    ) == 1  # its layer's scale is a scalar
    assert len(export.nodes("GlobalAveragePool")) == 1


def test_notes_say_which_quantizers_and_scales_the_flows_do_not_take() -> None:
    def power_of_two(model: QuantizedModel) -> QuantizedModel:
        layers = tuple(dataclasses.replace(x, scale=np.float32(0.125)) for x in model.layers)
        activations = tuple(dataclasses.replace(a, scale=np.float32(0.25), zero_point=0) for a in model.activations)
        return dataclasses.replace(model, layers=layers, activations=activations)

    assert exported(ConvNet, (3, 6, 6), change=power_of_two).report.notes == []
    notes = exported(ConvNet, (3, 6, 6)).report.notes
    assert [note.partition(" (")[0] for note in notes] == [
        "1 of 6 activation quantizers have a zero point", "10 of 10 scales are no power of two",
    ]  # fmt: skip


def test_a_scale_that_float32_weights_do_not_survive_is_refused() -> None:
    def huge(model: QuantizedModel) -> QuantizedModel:
        layers = [dataclasses.replace(layer, scale=np.float32(3e38)) for layer in model.layers]
        return dataclasses.replace(model, layers=tuple(layers))

    with pytest.raises(ExportError, match=r"conv1\.weight: its scale .* too small or too large"):
        exported(ConvNet, (3, 6, 6), change=huge)


def test_a_file_name_of_two_suffixes_means_qonnx_and_not_onnx() -> None:
    assert format_of(Path("m.qonnx.onnx")) == "qonnx"
    assert format_of(Path("m.onnx")) == "onnx"


# --- the package qonnx -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("act_bits", [None, 4])
def test_qonnx_runs_the_file_and_infers_the_searched_bits(act_bits: int | None) -> None:
    pytest.importorskip("qonnx", reason="the extra qonnx is not installed")
    export = exported(ConvNet, (3, 6, 6), act_bits=act_bits, low=0.0)
    content = export.proto.SerializeToString()
    found = qonnx_outputs(content, 3, {"input": export.inputs.numpy()})["output"]
    export.assert_same(found)
    facts = qonnx_facts(content)
    for layer in export.model.layers:
        assert facts["types"][f"{layer.name}_quant"] == [f"SCALEDINT<{layer.bit_width}>", layer.bit_width]
    for activation in export.model.activations:
        if activation.zero_point in (0, 1 << (activation.bits - 1)):
            assert facts["types"][activation.name] == [f"SCALEDINT<{activation.bits}>", activation.bits]
    # Each weight that is not 0 is used at 6·6 places, the classifier's at one.
    places = {"conv1.weight": 36, "depthwise.weight": 36, "conv2.weight": 36, "classifier.weight": 1}
    assert facts["macs"] == sum(places[x.name] * np.count_nonzero(x.q) for x in export.model.layers)
