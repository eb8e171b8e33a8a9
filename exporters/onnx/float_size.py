"""The size of the same network in float32, counted on the graph that was captured: nothing is computed or written."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from csqtool.nn.markers import MARKER_DOMAIN
from csqtool.quantized_model import QuantizedModel
from exporters.onnx.cleanup import tidy
from exporters.onnx.graph import GraphEditor, constant_of, only_user
from exporters.onnx.rewrite import WEIGHTED_OPS


def float32_size(captured: ir.Model, model: QuantizedModel) -> int:
    """Return the bytes of the ONNX file of the float32 network, BatchNorm folded into the weights that it follows.

    That is the file that torch writes of the untrained module, where folding adds no bias to a layer without one.

    Args:
        captured: the graph with marker nodes, see `exporters.onnx.capture`; it is not changed.
        model: the finalized model that it was captured of.
    """
    float_model = captured.clone()
    graph = float_model.graph
    editor = GraphEditor(graph)
    for node in list(graph):
        if node.domain == MARKER_DOMAIN and node.op_type == "Weight":
            name = node.attributes["name"].as_string()
            # One zero that is seen as often as the shape wants: float32 weights may be too large to be made.
            editor.replace(node, editor.constant(name, np.broadcast_to(np.float32(0), model.layer(name).shape)))
        elif node.domain == MARKER_DOMAIN:
            source = node.inputs[0]
            assert source is not None
            editor.replace(node, source)
    for node in list(graph):
        source = node.inputs[0] if node.inputs else None
        array = constant_of(source)
        if node.op_type == "Transpose" and array is not None:
            turned = array.transpose(node.attributes["perm"].as_ints())
            editor.replace(node, editor.fresh(str(node.outputs[0].name), turned))
        elif node.op_type == "BatchNormalization" and source is not None and _folds_into(source):
            editor.replace(node, source)
    float_model.opset_imports.pop(MARKER_DOMAIN, None)
    tidy(float_model, {})
    return _file_bytes(float_model)


def _folds_into(source: ir.Value) -> bool:
    """Tell whether torch folds a BatchNorm that reads `source` into the weight of the layer in front."""
    layer = source.producer()
    if layer is None or layer.op_type not in WEIGHTED_OPS or layer.op_type == "MatMul" or only_user(source) is None:
        return False
    return constant_of(layer.inputs[1]) is not None


def stored_bytes(model: ir.Model) -> int:
    """Return the bytes of all tensors that a model holds, as initializers or in nodes: its file is larger."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    tensors += [
        attribute.value for node in model.graph for attribute in node.attributes.values()
        if attribute.type is ir.AttributeType.TENSOR
    ]  # fmt: skip
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _file_bytes(model: ir.Model) -> int:
    """Return the bytes of a model's file, which may exceed what protobuf can write; takes its initializers away."""
    stored = 0
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        described = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
        stored += _field_bytes(described.ByteSize() + _field_bytes(tensor.nbytes))
    model.graph.initializers.clear()
    rest = ir.to_proto(model)
    del rest.graph.value_info[:]
    graph_bytes = rest.graph.ByteSize()
    return int(rest.ByteSize()) - _field_bytes(graph_bytes) + _field_bytes(graph_bytes + stored)


def _field_bytes(content: int) -> int:
    """Return the bytes of a protobuf field: its key of one byte, the length at seven bits a byte, the content."""
    return 1 + max(1, -(-content.bit_length() // 7)) + content
