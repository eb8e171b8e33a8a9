from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from csqtool.exporting import ExportReport
from csqtool.nn.post_training import post_training_model
from csqtool.quantized_model import ActivationQuantizer, QuantizedLayer, QuantizedModel
from exporters.onnx import to_onnx
from exporters.onnx.float_nodes import report_on
from exporters.onnx.options import OnnxOptions

MODEL = QuantizedModel(
    (QuantizedLayer("w", np.array([[1, -1]], np.int8), np.float32(1), "1"),),
    (ActivationQuantizer("relu.output", np.float32(0.5), 0, 8),),
    {},
)
STORED = {"scale": np.float32(0.5), "zero": np.uint8(0), "w": np.ones((1, 1), np.float32), "shape": np.array([1, 1])}


def reported(nodes: list[onnx.NodeProto], output: str) -> ExportReport:
    """The report on a graph of `nodes` from ``x`` to `output`, judged by patterns."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in ("x", output)]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in STORED.items()]
    graph = helper.make_graph(nodes, "main", values[:1], values[1:], stored)
    return report_on(helper.make_model(graph), b"", MODEL, OnnxOptions(runtime="generic"), [], {}, 0)


def quantize(source: str, name: str) -> list[onnx.NodeProto]:
    """Nodes that quantize `source` and make float of it again, as `name`."""
    return [
        helper.make_node("QuantizeLinear", [source, "scale", "zero"], [f"{name}_q"]),
        helper.make_node("DequantizeLinear", [f"{name}_q", "scale", "zero"], [name]),
    ]


@pytest.mark.parametrize("operator", ["Relu", "Tanh", "Identity"])
def test_a_chain_of_thousands_of_nodes_is_explained(operator: str) -> None:
    length = 3000
    nodes = quantize("x", "v0")
    nodes += [helper.make_node(operator, [f"v{i}"], [f"v{i + 1}"]) for i in range(length)]
    nodes += quantize(f"v{length}", "out")
    found = reported(nodes, "out").float_nodes
    if operator == "Identity":
        assert found == []
    elif operator == "Tanh":
        assert [node.reason for node in found] == ["no integer kernel for Tanh"] * length
    else:  # only the first reads quantized values
        assert [node.reason for node in found] == [f"its input v{i} is not quantized" for i in range(1, length)]


@pytest.mark.parametrize("source", ["x", "w"])
def test_sixty_residual_blocks_are_explained(source: str) -> None:
    # Each block doubles the paths from the start, whether it is the model's input or a constant.
    nodes = [helper.make_node("Identity", [source], ["v0"])]
    for i in range(60):
        nodes.append(helper.make_node("Reshape", [f"v{i}", "shape"], [f"left{i}"]))
        nodes.append(helper.make_node("Transpose", [f"v{i}"], [f"right{i}"]))
        nodes.append(helper.make_node("Concat", [f"left{i}", f"right{i}"], [f"v{i + 1}"], axis=0))
    nodes.append(helper.make_node("MatMul", ["x", "v60"], ["out"]))
    (found,) = reported(nodes, "out").float_nodes
    assert (found.name, found.operator, found.reason) == ("out", "MatMul", "its input x is not quantized")


def test_residual_additions_between_quantizers_count_as_integer() -> None:
    nodes = quantize("x", "v0")
    for i in range(60):
        nodes += [helper.make_node("Add", [f"v{i}", f"v{i}"], [f"sum{i}"]), *quantize(f"sum{i}", f"v{i + 1}")]
    assert reported(nodes, "v60").float_nodes == []


def test_one_unquantized_use_of_a_result_makes_its_node_compute_in_float() -> None:
    nodes = [*quantize("x", "v"), helper.make_node("Add", ["v", "v"], ["sum"]), *quantize("sum", "first")]
    nodes += [helper.make_node("Tanh", ["sum"], ["tanh"]), helper.make_node("Mul", ["first", "tanh"], ["out"])]
    reasons = {node.name: node.reason for node in reported(nodes, "out").float_nodes}
    assert reasons == {
        "sum": "its result is not quantized",
        "tanh": "no integer kernel for Tanh",
        "out": "its input tanh is not quantized",
    }


def test_values_joined_without_a_quantizer_do_not_reach_integer_kernels() -> None:
    nodes = [*quantize("x", "v"), helper.make_node("Concat", ["v", "v"], ["joined"], axis=0)]
    nodes += [helper.make_node("Add", ["joined", "v"], ["out"])]
    reasons = {node.name: node.reason for node in reported(nodes, "out").float_nodes}
    assert reasons["out"] == "its input joined is not quantized"


def test_parts_of_an_operator_that_the_runtime_takes_apart_are_named_after_what_comes_before() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardswish(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 2)).eval()
    model = post_training_model(net, [torch.randn(4, 3, 6, 6)], act_bits=8)
    found = to_onnx(model, net)[1].float_nodes
    assert [(node.name, node.operator, node.reason) for node in found] == [
        ("after 0", "HardSigmoid", "no integer kernel for HardSigmoid"),
        ("after 0", "Mul", "part of an operator without an integer kernel"),
    ]
