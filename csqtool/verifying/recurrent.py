"""The weights of ONNX's LSTM and GRU nodes, worked out from the finalized model's parameters without torch's export.

PyTorch stacks the gates of an LSTM as input, forget, cell, output, ONNX as input, output, forget, cell; those of a GRU
as reset, update, new and as update, reset, hidden. ONNX joins the two biases and has an axis for the directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from torch import nn

from csqtool.quantized_model import QuantizedModel
from csqtool.verifying.stored_weights import StoredWeights
from csqtool.verifying.weights import Problem, array_differences

# Which of PyTorch's gates ONNX has at each place, and the words for a message.
GATES = {"LSTM": ((0, 3, 1, 2), "input, output, forget, cell"), "GRU": ((1, 0, 2), "update, reset, hidden")}
# PyTorch's arithmetic: the attributes whose default, or absence, would be another one.
ATTRIBUTES: dict[str, dict[str, Any]] = {
    "LSTM": {"input_forget": 0, "layout": 0, "activations": ["Sigmoid", "Tanh", "Tanh"]},
    "GRU": {"linear_before_reset": 1, "layout": 0, "activations": ["Sigmoid", "Tanh"]},
}
DEFAULTS: dict[str, Any] = {"input_forget": 0, "layout": 0, "linear_before_reset": 0, "direction": "forward"}
OPERANDS = ("W", "R", "B")


@dataclass(frozen=True)
class Expected:
    """One layer of a recurrent module, both directions, as a node of ONNX.

    Attributes:
        operator: ``LSTM`` or ``GRU``.
        name: the first of its weights.
        weights: names of its quantized weights.
        arrays: W [directions, gates·hidden, input], R [directions, gates·hidden, hidden] and, unless there is no bias,
            B [directions, 2·gates·hidden].
        attributes: hidden size, direction and those of `ATTRIBUTES`.
    """

    operator: str
    name: str
    weights: frozenset[str]
    arrays: dict[str, NDArray[np.float32]]
    attributes: dict[str, Any]


def recurrent_layers(model: QuantizedModel, module: nn.Module) -> list[Expected]:
    """Return what the layers of all LSTM and GRU modules must be in ONNX, in the modules' order.

    Args:
        model: the finalized model.
        module: the user's module, of which only the settings of its recurrent modules are read.
    """
    values = dict(model.tensors) | {layer.name: layer.dequantized() for layer in model.layers}
    values |= {alias: values[name] for alias, name in model.tied.items()}
    quantized = {*(layer.name for layer in model.layers), *model.tied}
    found = []
    for path, part in module.named_modules():
        if not isinstance(part, nn.LSTM | nn.GRU):
            continue
        prefix = f"{path}." if path else ""
        for number in range(part.num_layers):
            ends = [f"l{number}", f"l{number}_reverse"][: 1 + part.bidirectional]
            names = [f"{prefix}weight_{kind}_{end}" for kind in ("ih", "hh") for end in ends]
            operator = "LSTM" if isinstance(part, nn.LSTM) else "GRU"
            arrays = {
                operand: np.stack([_in_order(values[f"{prefix}weight_{kind}_{end}"], operator) for end in ends])
                for operand, kind in (("W", "ih"), ("R", "hh"))
            }
            if part.bias:
                biases = [[values[f"{prefix}bias_{kind}_{end}"] for kind in ("ih", "hh")] for end in ends]
                arrays["B"] = np.stack([np.concatenate([_in_order(b, operator) for b in pair]) for pair in biases])
            direction = "bidirectional" if part.bidirectional else "forward"
            attributes = ATTRIBUTES[operator] | {"hidden_size": part.hidden_size, "direction": direction}
            attributes["activations"] = attributes["activations"] * len(ends)
            weights = frozenset(name for name in names if name in quantized)
            found.append(Expected(operator, names[0], weights, arrays, attributes))
    return found


def _in_order(stacked: NDArray[Any], operator: str) -> NDArray[np.float32]:
    """Return PyTorch's gates, stacked on the first axis, in ONNX's order."""
    order, _ = GATES[operator]
    gates = stacked.reshape(len(order), -1, *stacked.shape[1:])  # (gates, hidden, …)
    return np.ascontiguousarray(gates[list(order)].reshape(stacked.shape), np.float32)


def recurrent_problems(flat: onnx.ModelProto, expected: list[Expected]) -> Iterator[Problem]:
    """Yield what differs between a file's LSTM and GRU nodes and the recurrent layers of the finalized model.

    Args:
        flat: the file without functions.
        expected: from `recurrent_layers`.
    """
    stored = StoredWeights(flat)
    seen: set[str] = set()
    for node in flat.graph.node:
        if node.op_type not in GATES or node.domain not in ("", "ai.onnx"):
            continue
        candidates = [layer for layer in expected if layer.operator == node.op_type]
        given = dict(zip(OPERANDS, [*node.input[1:4], "", ""], strict=False))
        constants = {operand: stored.constant(name) for operand, name in given.items() if name}
        problems = {layer.name: list(_node_problems(node, layer, constants)) for layer in candidates}
        if not problems:
            yield node.name or node.op_type, f"the model has no {node.op_type}"
            continue
        nearest = min(candidates, key=lambda layer: (len(problems[layer.name]), layer.name in seen))
        seen.add(nearest.name)
        yield from ((nearest.name, text) for text in problems[nearest.name])
    for layer in expected:
        if layer.weights and layer.name not in seen:
            yield layer.name, f"no {layer.operator} node has its weights"


def _node_problems(
    node: onnx.NodeProto, layer: Expected, constants: Mapping[str, NDArray[Any] | None]
) -> Iterator[str]:
    """Yield what a node has that a layer has not; `constants` are those of its operands, None for what is none."""
    order = GATES[node.op_type][1]
    given = [*node.input, *[""] * (8 - len(node.input))]
    for operand in OPERANDS:
        wanted, found = layer.arrays.get(operand), constants.get(operand)
        what = f"{operand} of its {node.op_type}"
        if operand in constants and found is None:
            yield f"{what} is no constant"
        elif wanted is not None and found is not None:
            yield from array_differences(found, wanted, f"{what}, gates {order}")
        elif wanted is not None and wanted.any():
            yield f"{what} is missing"
        elif found is not None and found.any():
            yield f"{what} is not zero, and the model has none"
    if given[4] or given[7]:
        yield f"its {node.op_type} has {'lengths of sequences' if given[4] else 'peepholes'}, which PyTorch's has not"
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    attributes = {k: v.decode() if isinstance(v, bytes) else v for k, v in attributes.items()}
    if "activations" in attributes:
        attributes["activations"] = [one.decode() for one in attributes["activations"]]
    for name, value in layer.attributes.items():
        default = value if name == "activations" else DEFAULTS.get(name)
        if attributes.get(name, default) != value:
            yield f"{name} of its {node.op_type} is {attributes.get(name, default)} instead of {value}"
    for name in ("clip", "activation_alpha", "activation_beta"):
        if name in attributes:
            yield f"its {node.op_type} has {name}, which PyTorch's has not"
