"""Ways to break a packed export, and the float tensors of one: verify names the layer."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from csqtool.factories import build_model
from csqtool.nn.post_training import post_training_model
from csqtool.quantized_model import QuantizedModel
from csqtool.verifying.weights import named_tensors, onnx_tensor_problems
from exporters.onnx import to_onnx
from tests.support.commands import DIGITS, QUICK, ROOT, Built, invoke, ok
from tests.support.onnx_changes import Mutation, array, attribute, put

pytestmark = pytest.mark.usefixtures("one_capture")

Proto = onnx.ModelProto
Caught = Callable[[str, object], None]


def stream_bit_flipped(proto: Proto) -> None:
    tensor = attribute(proto, "block.conv1.0.weight", "stream").t
    tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]


def weight_scale_changed(proto: Proto) -> None:
    tensor = attribute(proto, "block.conv1.0.weight", "scale").t
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01)))


def shape_permuted(proto: Proto) -> None:
    ints = attribute(proto, "stem.0.weight", "shape").ints
    ints[0], ints[1] = ints[1], ints[0]


def activation_scale_changed(proto: Proto) -> None:
    attribute(proto, "relu@4.output", "scale").f *= 1.01


def activation_scale_infinite(proto: Proto) -> None:
    attribute(proto, "relu@4.output", "scale").f = float("inf")


def quantizer_exchanged(proto: Proto) -> None:
    """A function of the file's own that clips more than it should."""
    function = next(f for f in proto.functions if f.name == "FakeQuantize")
    quantize = next(n for n in function.node if n.op_type == "QuantizeLinear")
    dequantize = next(n for n in function.node if n.op_type == "DequantizeLinear")
    function.node.remove(dequantize)
    function.node.extend([
        helper.make_node("Clip", [quantize.output[0], "", quantize.input[2]], ["less"]),
        helper.make_node("DequantizeLinear", ["less", *dequantize.input[1:]], list(dequantize.output)),
    ])  # fmt: skip


def function_negates(proto: Proto) -> None:
    function = next(f for f in proto.functions if f.name == "Weight")
    last = [n for n in function.node if n.op_type == "Sub"][-1]
    last.input[0], last.input[1] = last.input[1], last.input[0]


PACKED: dict[str, tuple[Mutation, str, str]] = {
    "packed: one bit of a stream": (stream_bit_flipped, "weights", "block.conv1.0.weight"),
    "packed: scales × 1.01": (weight_scale_changed, "weights", "block.conv1.0.weight"),
    "packed: a shape's axes exchanged": (shape_permuted, "weights", "stem.0.weight"),
    "packed: an activation scale × 1.01": (activation_scale_changed, "weights", "relu@4.output"),
    "packed: an infinite activation scale": (activation_scale_infinite, "integrity", "relu@4.output.scale"),
    "packed: a function clips": (quantizer_exchanged, "weights", "relu@4.output"),
    "packed: a function negates": (function_negates, "weights", "stem.0.weight"),
}


@pytest.fixture(scope="module")
def packed_export(eight_bits: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed export of a model in which no layer needs eight bits: those are no streams."""
    folder = tmp_path_factory.mktemp("packed")
    ok("search", DIGITS, "--data", "digits", "--target-bits", 3, "--max-bits", 6, "--act-bits", 8, *QUICK, "-o",
       folder / "run")  # fmt: skip
    ok("finalize", folder / "run", "-o", folder / "model.safetensors")
    ok("export", folder / "model.safetensors", "-o", folder / "model.onnx", "--weights", "packed")
    return folder


@pytest.mark.parametrize("name", PACKED)
def test_a_broken_packed_export_fails_at_the_right_level_and_layer(
    packed_export: Path, tmp_path: Path, name: str, record_property: Caught
) -> None:
    mutate, level, layer = PACKED[name]
    proto = onnx.load(packed_export / "model.onnx")
    mutate(proto)
    onnx.save(proto, tmp_path / "broken.onnx")
    against = ["--against", packed_export / "model.safetensors", "--samples", 100]
    assert invoke("verify", packed_export / "model.onnx", *against).exit_code == 0
    result = invoke("verify", tmp_path / "broken.onnx", *against, "--json")
    assert result.exit_code == 1
    failed = [check for check in json.loads(result.stdout)["checks"] if not check["passed"]]
    assert layer in {check["layer"] for check in failed if check["level"] == level}
    record_property("caught", [name, ", ".join(sorted({check["level"] for check in failed}))])


@pytest.fixture(scope="module")
def transformer() -> tuple[QuantizedModel, onnx.ModelProto]:
    net = build_model(f"{ROOT}/sample_models/digits_vit/model.py:digits_vit", {}).eval()
    model = post_training_model(net, [torch.randn(8, 1, 8, 8)], planes=3, act_bits=8)
    return model, onnx.load_from_string(to_onnx(model, copy.deepcopy(net))[0])


@pytest.mark.parametrize("name", ["position", "blocks.0.norm1.weight", "blocks.0.mlp.0.bias", "patches.bias"])
def test_a_changed_float_tensor_of_a_transformer_is_named(
    transformer: tuple[QuantizedModel, onnx.ModelProto], name: str
) -> None:
    model, untouched = transformer
    assert list(onnx_tensor_problems(named_tensors(untouched, model), model)) == []
    broken = onnx.ModelProto()
    broken.CopyFrom(untouched)
    put(broken, name, array(broken, name) * np.float32(1.0001))
    assert [layer for layer, _ in onnx_tensor_problems(named_tensors(broken, model), model)] == [name]
