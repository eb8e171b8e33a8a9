"""The order of ONNX's gates, worked out by verify: it computes PyTorch's numbers, and every other order is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from csqtool.nn.finalized_net import finalized_net
from csqtool.nn.post_training import post_training_model
from csqtool.onnx_session import session
from csqtool.quantized_model import QuantizedModel
from csqtool.verifying.recurrent import Expected, recurrent_layers, recurrent_problems

KINDS = {
    "lstm": lambda: nn.LSTM(5, 4),
    "lstm of two layers and directions": lambda: nn.LSTM(5, 4, num_layers=2, bidirectional=True),
    "gru of two layers and directions": lambda: nn.GRU(5, 4, num_layers=2, bidirectional=True),
    "gru without bias": lambda: nn.GRU(5, 4, bias=False),
}
Proto = onnx.ModelProto


class Sequences(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


def quantized(kind: str) -> tuple[QuantizedModel, nn.Module]:
    torch.manual_seed(0)
    module = Sequences(KINDS[kind]())
    return post_training_model(module, [torch.randn(3, 6, 5)], planes=4), module


def graph_of(layers: list[Expected]) -> Proto:
    """Return a file made by hand: ONNX's nodes one after another, [T, N, 5] to [T, N, directions·4]."""
    nodes, tensors, x = [], [numpy_helper.from_array(np.array([0, 0, -1]), "joined")], "input"
    for number, layer in enumerate(layers):
        names = [f"{operand}{number}" if operand in layer.arrays else "" for operand in ("W", "R", "B")]
        tensors += [numpy_helper.from_array(a, f"{operand}{number}") for operand, a in layer.arrays.items()]
        nodes.append(helper.make_node(layer.operator, [x, *names], [f"y{number}"], f"rnn{number}", **layer.attributes))
        nodes.append(helper.make_node("Transpose", [f"y{number}"], [f"turned{number}"], perm=[0, 2, 1, 3]))
        x = f"x{number}"
        nodes.append(helper.make_node("Reshape", [f"turned{number}", "joined"], [x]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("input", x)]
    graph = helper.make_graph(nodes, "main", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_gates_computes_what_pytorch_does(kind: str) -> None:
    model, module = quantized(kind)
    layers = recurrent_layers(model, module)
    proto = graph_of(layers)
    assert list(recurrent_problems(proto, layers)) == []
    x = torch.randn(7, 3, 5)
    with torch.no_grad():
        wanted = finalized_net(module, model)(x).numpy()
    (found,) = session(proto.SerializeToString(), "off").run(None, {"input": x.numpy()})
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 1e-6


def tensor(proto: Proto, name: str) -> onnx.TensorProto:
    return next(t for t in proto.graph.initializer if t.name == name)


def exchanged(name: str, gates: int, one: int, other: int) -> Callable[[Proto], None]:
    def edit(proto: Proto) -> None:
        array = numpy_helper.to_array(tensor(proto, name)).copy()  # (directions, gates·hidden, …)
        parts = array.reshape(array.shape[0], gates, -1)
        parts[:, [one, other]] = parts[:, [other, one]]
        tensor(proto, name).CopyFrom(numpy_helper.from_array(array, name))

    return edit


def attribute(name: str, value: int | float | str | None) -> Callable[[Proto], None]:
    def edit(proto: Proto) -> None:
        node = next(n for n in proto.graph.node if n.name == "rnn0")
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, *([] if value is None else [helper.make_attribute(name, value)])])

    return edit


def operand(position: int, name: str) -> Callable[[Proto], None]:
    def edit(proto: Proto) -> None:
        node = next(n for n in proto.graph.node if n.name == "rnn0")
        while len(node.input) <= position:
            node.input.append("")
        node.input[position] = name

    return edit


def without_the_second_layer(proto: Proto) -> None:
    for node in list(proto.graph.node):
        if node.output[0] in ("y1", "turned1", "x1"):
            proto.graph.node.remove(node)


TWO = "two layers and directions"


@pytest.mark.parametrize(
    ("kind", "edit", "layer", "message"),
    [
        (f"lstm of {TWO}", exchanged("W0", 4, 1, 3), "rnn.weight_ih_l0", "W of its LSTM, gates input, output, forget"),
        (f"lstm of {TWO}", exchanged("R1", 4, 2, 3), "rnn.weight_ih_l1", "R of its LSTM"),
        (f"gru of {TWO}", exchanged("B1", 6, 0, 1), "rnn.weight_ih_l1", "B of its GRU, gates update, reset, hidden"),
        (f"lstm of {TWO}", operand(3, ""), "rnn.weight_ih_l0", "B of its LSTM is missing"),
        ("gru without bias", operand(3, "W0"), "rnn.weight_ih_l0", "B of its GRU is not zero, and the model has none"),
        ("lstm", operand(2, "input"), "rnn.weight_ih_l0", "R of its LSTM is no constant"),
        ("lstm", operand(7, "B0"), "rnn.weight_ih_l0", "its LSTM has peepholes"),
        ("gru without bias", attribute("linear_before_reset", None), "rnn.weight_ih_l0",
         "linear_before_reset of its GRU is 0 instead of 1"),
        ("lstm", attribute("direction", "reverse"), "rnn.weight_ih_l0", "direction of its LSTM is reverse instead of"),
        ("lstm", attribute("clip", 1.0), "rnn.weight_ih_l0", "its LSTM has clip"),
        (f"gru of {TWO}", without_the_second_layer, "rnn.weight_ih_l1", "no GRU node has its weights"),
    ],
)  # fmt: skip
def test_another_order_operand_or_arithmetic_is_refused_and_named(
    kind: str, edit: Callable[[Proto], None], layer: str, message: str
) -> None:
    layers = recurrent_layers(*quantized(kind))
    proto = graph_of(layers)
    edit(proto)
    (problem,) = recurrent_problems(proto, layers)
    assert problem[0] == layer
    assert problem[1].startswith(message)


def test_a_node_that_the_model_does_not_have_is_refused() -> None:
    layers = recurrent_layers(*quantized("lstm"))
    problems = list(recurrent_problems(graph_of(layers), []))
    assert problems == [("rnn0", "the model has no LSTM")]
