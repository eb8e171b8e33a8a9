"""The structure level on every form that an export may have: untouched it passes, and what is edited fails."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from csqtool.nn.finalized_net import finalized_net
from csqtool.onnx_file import flattened
from csqtool.verifying.expected_graph import expected_graph
from csqtool.verifying.float_folding import batch_norm_epsilons
from csqtool.verifying.structure import NETWORK
from csqtool.verifying.weights import named_tensors, onnx_tensor_problems
from tests.support.structural import Branches, Edit, Proto, Sample, first, make, node, put, sample, values

FORMS: list[dict[str, Any]] = [
    {"weights": "coded"}, {"weights": "packed"}, {"weights": "int4"}, {"weights": "int2"}, {"runtime": "generic"},
    {"runtime": "openvino"}, {"act_bits": 4}, {"act_bits": None}, {"act_bits": None, "weight_form": "qdq"},
    {"act_bits": None, "weights": "int8"}, {"act_bits": None, "runtime": "openvino", "weights": "int4"},
    {"dynamic": (2, 3), "weights": "int8"},
]  # fmt: skip


@pytest.mark.usefixtures("one_capture")
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_untouched_export_is_explained_in_every_form(form: dict[str, Any]) -> None:
    torch.manual_seed(0)
    made = sample(Branches(), (1, 8, 8), **form)
    assert [check.detail for check in made.structure() if not check.passed] == []


@pytest.fixture(scope="module")
def packed() -> Sample:
    torch.manual_seed(0)
    return sample(Branches(), (1, 8, 8), weights="packed")


def function(proto: Proto, name: str) -> onnx.FunctionProto:
    return next(f for f in proto.functions if f.name == name)


def attribute(place: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    return next(a for a in place.attribute if a.name == name)


def stream_bit(proto: Proto) -> None:
    stream = attribute(node(proto, "left.0.weight"), "stream").t
    stream.raw_data = bytes([stream.raw_data[0] ^ 1]) + stream.raw_data[1:]


def scale_changed(proto: Proto) -> None:
    scale = attribute(node(proto, "left.0.weight"), "scale").t
    scale.CopyFrom(numpy_helper.from_array(np.nextafter(numpy_helper.to_array(scale), np.float32(9), dtype=np.float32)))


def body_negates(proto: Proto) -> None:
    last = [n for n in function(proto, "Weight").node if n.op_type == "Sub"][-1]
    last.input[0], last.input[1] = last.input[1], last.input[0]


def body_clips(proto: Proto) -> None:
    body = function(proto, "FakeQuantize")
    quantize = next(n for n in body.node if n.op_type == "QuantizeLinear")
    dequantize = next(n for n in body.node if n.op_type == "DequantizeLinear")
    clip = make("Clip", [quantize.output[0], "", quantize.input[2]], ["less"])
    dequantize.input[0] = "less"
    body.node.insert(list(body.node).index(dequantize), clip)


def body_is_random(proto: Proto) -> None:
    body = function(proto, "Weight")
    last = body.node[-1]
    body.node.extend([
        make("RandomUniformLike", [last.output[0]], ["noise"]), make("Add", [last.output[0], "noise"], ["noisy"])
    ])  # fmt: skip
    body.output[0] = "noisy"


def body_has_dead_nodes(proto: Proto) -> None:
    body = function(proto, "FakeQuantize")
    body.node.append(make("Neg", ["x"], ["nothing"]))


def body_has_control_flow(proto: Proto) -> None:
    body = function(proto, "FakeQuantize")
    old = body.output[0]
    side = helper.make_graph([make("Identity", [old], ["side"])], "side", [],
                             [helper.make_tensor_value_info("side", onnx.TensorProto.FLOAT, None)])  # fmt: skip
    body.node.extend([
        make("Constant", [], ["yes"], value=numpy_helper.from_array(np.asarray(True))),
        make("If", ["yes"], ["chosen"], then_branch=side, else_branch=side),
    ])  # fmt: skip
    body.output[0] = "chosen"


def parameter_ignored(proto: Proto) -> None:
    function(proto, "FakeQuantize").attribute.append("ignored")


def unknown_attribute(proto: Proto) -> None:
    place = next(n for n in proto.graph.node if n.op_type == "FakeQuantize")
    place.attribute.append(helper.make_attribute("hint", 1))


def other_opset(proto: Proto) -> None:
    function(proto, "FakeQuantize").opset_import[0].version -= 1


def renamed_domain(proto: Proto) -> None:
    for body in proto.functions:
        body.domain = "com.microsoft"
    for place in proto.graph.node:
        place.domain = place.domain and "com.microsoft"
    next(o for o in proto.opset_import if o.domain).domain = "com.microsoft"


def activation_scale(proto: Proto) -> None:
    attribute(node(proto, "left.1.output"), "scale").f *= 1.000001


def shape_permuted(proto: Proto) -> None:
    shape = attribute(node(proto, "left.0.weight"), "shape").ints
    shape[:] = [8, 3, 8, 3]


PACKED: dict[str, tuple[Edit, str]] = {
    "one bit of a stream": (stream_bit, "left.0.weight"),
    "a scale's last bit": (scale_changed, "left.0.weight"),
    "an activation scale": (activation_scale, "left.1.output"),
    "a shape": (shape_permuted, "left.0.weight"),
    "a function that negates": (body_negates, "left.0.weight"),
    "a function that clips": (body_clips, "add.output"),
    "a function that is random": (body_is_random, "noise"),
    "a function with dead nodes": (body_has_dead_nodes, "nothing"),
    "a function with control flow": (body_has_control_flow, "chosen"),
    "a parameter that is ignored": (parameter_ignored, "csqtool.FakeQuantize"),
    "an attribute that is ignored": (unknown_attribute, "stem.2.output"),
    "a function of another opset": (other_opset, "csqtool.FakeQuantize"),
    "functions in a vendor's domain": (renamed_domain, "com.microsoft.FakeQuantize"),
}


@pytest.mark.usefixtures("one_capture")
@pytest.mark.parametrize("name", PACKED)
def test_a_packed_export_made_to_fool_fails_at_its_place(packed: Sample, name: str) -> None:
    edit, place = PACKED[name]
    blamed = set().union(*packed.failures(edit).values())
    assert any(re.search(rf"(^|_){re.escape(place)}$|^{re.escape(place)}", found) for found in blamed), blamed


class FloatStem(nn.Module):
    """A convolution and a BatchNorm in front of a quantized layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(torch.relu(self.bn(self.conv(x))).mean((2, 3))))


@pytest.fixture(scope="module", params=[8, None], ids=["A8", "float"])
def float_stem(request: pytest.FixtureRequest) -> Sample:
    torch.manual_seed(0)
    return sample(FloatStem(), (1, 8, 8), act_bits=request.param, exclude=("conv.*",))


def float_problems(made: Sample, proto: Proto) -> list[tuple[str, str]]:
    found = named_tensors(flattened(proto, where="file"), made.model)
    return list(onnx_tensor_problems(found, made.model, batch_norm_epsilons(made.module)))


def test_a_batch_norm_that_torch_folds_into_a_float_layer_is_accepted(float_stem: Sample) -> None:
    proto = float_stem.proto()
    assert not np.array_equal(values(proto, "conv.weight"), float_stem.model.tensors["conv.weight"])
    assert float_problems(float_stem, proto) == []
    assert all(check.passed for check in float_stem.structure())


def test_a_float_layer_with_another_folding_fails_in_both_levels(float_stem: Sample) -> None:
    def edit(proto: Proto) -> None:
        put(proto, "conv.weight", values(proto, "conv.weight") * np.float32(1.0001))

    proto = float_stem.proto()
    edit(proto)
    assert [name for name, _ in float_problems(float_stem, proto)] == ["conv.weight"]
    assert "conv.weight" in float_stem.failures(edit)["dataflow"]


def test_rounding_of_another_version_of_torch_is_accepted_in_folded_layers_only(float_stem: Sample) -> None:
    def rounded(name: str) -> Edit:
        def edit(proto: Proto) -> None:
            put(proto, name, np.nextafter(values(proto, name), np.float32(9), dtype=np.float32))

        return edit

    assert float_stem.failures(rounded("conv.weight")) == {}
    blamed = float_stem.failures(rounded("norm.bias"))["dataflow"]
    assert "norm.bias" in blamed


def test_an_allowed_part_passes_and_is_reported(packed: Sample) -> None:
    def edit(proto: Proto) -> None:
        first(proto, "HardSwish").op_type = "Mish"

    assert packed.failures(edit) == {"dataflow": {"deep.1"}}
    checks = packed.structure(edit, allowed=("deep.1",))
    assert all(check.passed for check in checks)
    assert "not accounted, but allowed: deep.1 (Mish" in checks[-1].detail
    assert not all(check.passed for check in packed.structure(edit, allowed=("deep",)))


def test_a_network_that_cannot_be_captured_is_not_accounted(packed: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: Any, **_more: Any) -> None:
        raise RuntimeError("no graph today")

    monkeypatch.setattr(torch.onnx, "export", broken)
    packed._captured.clear()
    failed = [check for check in packed.structure() if not check.passed]
    assert [(check.layer, check.detail) for check in failed] == [
        (NETWORK, "not accounted: network: torch.onnx.export cannot capture the network: no graph today")
    ]
    assert all(check.passed for check in packed.structure(allowed=(NETWORK,)))


def test_the_capture_leaves_the_network_as_it_was(packed: Sample) -> None:
    net = finalized_net(copy.deepcopy(packed.module), packed.model)
    x = torch.randn(4, 1, 8, 8)
    wanted = net(x)
    expected_graph(net, packed.model, ())
    assert torch.equal(net(x), wanted)
