"""A graph a person can read: no leftovers of the capture, stable names, deterministic bytes."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from csqtool import __version__

NAMED = "csqtool.named"  # marks values whose name says what they are
CONVERSIONS = ("Cast", "Clip", "DequantizeLinear", "QuantizeLinear")
CAPTURED_PREFIX = "model."  # where the captured net keeps the user's module


def tidy(model: ir.Model, properties: dict[str, str]) -> None:
    """Remove what the file does not need and name what is left, in place.

    Args:
        model: the rewritten graph.
        properties: metadata properties of the file.
    """
    RemoveUnusedNodesPass()(model)
    graph = model.graph
    graph.name, graph.doc_string = "main", None
    graph.metadata_props.clear()
    model.metadata_props.clear()
    model.metadata_props.update(properties)
    model.doc_string = None
    model.producer_name, model.producer_version = "csqtool", __version__
    taken = {value.name for value in (*graph.inputs, *graph.outputs)}
    for name, value in list(graph.initializers.items()):
        value.metadata_props.clear()
        value.doc_string = None
        if name.startswith(CAPTURED_PREFIX):
            del graph.initializers[name]
            value.name = name.removeprefix(CAPTURED_PREFIX)
            graph.register_initializer(value)
    taken |= set(graph.initializers)
    counts: Counter[str] = Counter()
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
            output.doc_string = None
            if output.is_graph_output():
                continue
            if NAMED not in output.meta:
                counts[node.op_type] += 1
                output.name = f"{node.op_type.lower()}_{counts[node.op_type]}"
            while output.name in taken:
                output.name = f"{output.name}_"
            taken.add(output.name)
            output.shape, output.type = None, None  # readers infer them; written out they cost a third of the file
        _drop_defaults(node)
        # A node is called as its result; what only converts values needs no name of its own.
        node.name = None if node.op_type in CONVERSIONS or node.domain else node.outputs[0].name


def _drop_defaults(node: ir.Node) -> None:
    """Remove attributes that say what ONNX assumes without them: torch writes all of them."""
    for name, attribute in list(node.attributes.items()):
        if node.op_type in ("Conv", "ConvTranspose", "AveragePool", "MaxPool"):
            default = (
                (name in ("dilations", "strides") and set(attribute.as_ints()) == {1})
                or (name == "pads" and set(attribute.as_ints()) == {0})
                or (name == "auto_pad" and attribute.as_string() == "NOTSET")
                or (name == "kernel_shape" and "Conv" in node.op_type)  # the weight has it
                or (name == "group" and attribute.as_int() == 1)
                or (name in ("ceil_mode", "count_include_pad", "storage_order") and attribute.as_int() == 0)
            )
        elif node.op_type == "Gemm":
            default = (name in ("alpha", "beta") and attribute.as_float() == 1.0) or (
                name == "transA" and attribute.as_int() == 0
            )
        else:
            default = False
        if default:
            del node.attributes[name]
