"""The graph that an ONNX file must hold: a fresh capture of the finalized PyTorch network, in plain ONNX.

The capture is torch's own. Its marker nodes are replaced here, by code that shares nothing with the exporters: a weight
by its values float32(q)·Δ with the BatchNorm that folds into it, an activation quantizer by QuantizeLinear, Clip and
DequantizeLinear. The graph is never run; it is what a file is compared with (`csqtool.verifying.structure`).
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from csqtool.nn.markers import MARKER_DOMAIN, graph_markers
from csqtool.nn.quantized_net import QuantizedNet
from csqtool.nn.reparametrized import copied
from csqtool.nn.signature import output_names, recorded_inputs
from csqtool.quantized_model import QuantizedLayer, QuantizedModel
from csqtool.verifying.weights import expected_in_onnx

CAPTURE_OPSET = 18  # the lowest that torch writes by itself; the operators it writes mean the same in later ones


class NotCapturedError(Exception):
    """torch cannot capture the network, or a weight is used in a way that has no form in a file."""


@dataclass
class ExpectedGraph:
    """What a file must compute.

    Attributes:
        proto: the graph, without markers.
        integers: the values that must come from stored integers: the quantized weights.
        equivalent: bytes of a constant to the bytes of the one in `proto` that it may stand for.
    """

    proto: onnx.ModelProto
    integers: set[str] = field(default_factory=set)
    equivalent: dict[bytes, NDArray[Any]] = field(default_factory=dict)


def expected_graph(net: QuantizedNet, model: QuantizedModel, dynamic: Sequence[int]) -> ExpectedGraph:
    """Capture a finalized network and return the graph that a file of it must hold, see `captured` and `expected_of`.

    Raises:
        NotCapturedError: there is no such graph; says why.
    """
    return expected_of(captured(net, model, dynamic), model)


def expected_of(capture: onnx.ModelProto, model: QuantizedModel) -> ExpectedGraph:
    """Return the graph that a file of a finalized model must hold.

    Args:
        capture: of the finalized network, from `captured`; it is changed.
        model: the finalized model.

    Raises:
        NotCapturedError: there is no such graph; says why.
    """
    expected = ExpectedGraph(capture)
    graph = expected.proto.graph
    _replace_weights(expected, model)
    quantizers = {a.name: a for a in model.activations}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.domain == MARKER_DOMAIN and node.op_type == "Activation":
            nodes += _quantizer_nodes(graph, node, quantizers[_name_of(node)])
        else:
            nodes.append(node)
    _set_nodes(graph, nodes)
    kept = [o for o in expected.proto.opset_import if o.domain != MARKER_DOMAIN]
    del expected.proto.opset_import[:]
    expected.proto.opset_import.extend(kept)
    del graph.value_info[:]
    return expected


def captured(net: QuantizedNet, model: QuantizedModel, dynamic: Sequence[int]) -> onnx.ModelProto:
    """Return PyTorch's own graph of a finalized network, quantized values as marker nodes.

    Args:
        net: the finalized network.
        model: the finalized model.
        dynamic: axes of the input that are dynamic beside the batch.

    Raises:
        NotCapturedError: torch cannot capture the network.
    """
    inputs = recorded_inputs(model.info)
    dims = {axis: torch.export.Dim(f"axis_{axis}") for axis in dynamic}
    batch = torch.export.Dim("batch")
    axes = [
        {0: batch}
        | {axis: dim for axis, dim in dims.items() if inputs[0].shape[axis - 1 : axis] == one.shape[axis - 1 : axis]}
        for one in inputs
    ]
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with (
            graph_markers(),
            net.captured(inputs) as sample,
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                net,
                sample,
                dynamo=True,
                opset_version=CAPTURE_OPSET,
                input_names=[i.name for i in inputs],
                output_names=output_names(copied(net.model), inputs, net.kept_outputs),
                dynamic_shapes={"inputs": tuple(axes)},
                external_data=False,
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # torch may raise anything
        text = str(error).strip() or type(error).__name__
        raise NotCapturedError(f"torch.onnx.export cannot capture the network: {text.splitlines()[0]}") from error
    finally:
        logger.setLevel(level)
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    return proto


def _name_of(node: onnx.NodeProto) -> str:
    return str(next(a.s.decode() for a in node.attribute if a.name == "name"))


def _set_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del graph.node[:]
    graph.node.extend(copies)


def _constant(graph: onnx.GraphProto, name: str, values: NDArray[Any]) -> str:
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
    return name


def _replace_weights(expected: ExpectedGraph, model: QuantizedModel) -> None:
    """Replace every weight marker by the weight's values, and fold the BatchNorms that fold."""
    graph = expected.proto.graph
    markers = {n.output[0]: _name_of(n) for n in graph.node if n.domain == MARKER_DOMAIN and n.op_type == "Weight"}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    removed: set[str] = set()
    renamed: dict[str, str] = {}
    for value, name in markers.items():
        layer = model.layer(name)
        weight = layer.q.astype(np.float32) * np.float32(layer.scale)
        if layer.batch_norm is not None:
            norm = _norm_after(layer, users.get(value, []), users)
            weight, bias = _folded(expected, model, layer)
            user = users[value][0]
            while len(user.input) < 3:
                user.input.append("")
            user.input[2] = _constant(graph, f"{value}::bias", bias)
            removed.add(norm.output[0])
            renamed[norm.output[0]] = user.output[0]
        expected.integers.add(_constant(graph, value, weight))
        removed.add(value)
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
    outputs = {output.name for output in graph.output}
    nodes = [node for node in graph.node if node.output[0] not in removed]
    for norm_output, layer_output in renamed.items():
        if norm_output in outputs:
            nodes.append(helper.make_node("Identity", [layer_output], [norm_output]))
    _set_nodes(graph, nodes)


def _norm_after(
    layer: QuantizedLayer, readers: list[onnx.NodeProto], users: dict[str, list[onnx.NodeProto]]
) -> onnx.NodeProto:
    after = users.get(readers[0].output[0], []) if len(readers) == 1 else []
    if len(after) != 1 or after[0].op_type != "BatchNormalization" or readers[0].op_type not in ("Conv", "Gemm"):
        raise NotCapturedError(f"{layer.name}: {layer.batch_norm} does not follow it in PyTorch's graph")
    return after[0]


def _folded(
    expected: ExpectedGraph, model: QuantizedModel, layer: QuantizedLayer
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a layer's weight and bias with its BatchNorm folded; the bias may also be stored as integers."""
    stored = expected_in_onnx(model, layer)
    scale = stored.scale.reshape(-1, *[1] * (layer.q.ndim - 1))
    assert stored.bias is not None
    bias = stored.bias.astype(np.float32)
    if stored.bias_step is not None:
        steps = np.rint(stored.bias / stored.bias_step.astype(np.float64))
        as_integers = steps.astype(np.int32).astype(np.float32) * stored.bias_step
        expected.equivalent[as_integers.astype(np.float32).tobytes()] = bias
    return stored.q.astype(np.float32) * scale, bias


def _quantizer_nodes(graph: onnx.GraphProto, node: onnx.NodeProto, quantizer: Any) -> list[onnx.NodeProto]:
    name = f"{node.output[0]}::{quantizer.name}"
    scale = _constant(graph, f"{name}::scale", np.asarray(quantizer.scale, np.float32))
    zero_point = _constant(graph, f"{name}::zero_point", np.asarray(quantizer.zero_point, np.uint8))
    low = _constant(graph, f"{name}::low", np.asarray(0, np.uint8))
    high = _constant(graph, f"{name}::high", np.asarray(2**quantizer.bits - 1, np.uint8))
    return [
        helper.make_node("QuantizeLinear", [node.input[0], scale, zero_point], [f"{name}::q"]),
        helper.make_node("Clip", [f"{name}::q", low, high], [f"{name}::clipped"]),
        helper.make_node("DequantizeLinear", [f"{name}::clipped", scale, zero_point], [node.output[0]]),
    ]
