"""Makes a graph readable: without leftovers of the capture, with stable names and deterministic bytes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from csqtool.version import __version__
from exporters.onnx.graph import NAMED, GraphEditor, constant_of, only_user

CONVERSIONS = ("Cast", "Clip", "DequantizeLinear", "QuantizeLinear")
CAPTURED_PREFIX = "model."  # where the captured net keeps the user's module


def tidy(model: ir.Model, properties: dict[str, str]) -> None:
    """Remove what the file does not need and name the rest, in place.

    Args:
        model: the rewritten graph.
        properties: metadata properties of the file.
    """
    graph = model.graph
    _merge_slices(graph)
    RemoveUnusedNodesPass()(model)
    graph.name, graph.doc_string = "main", None
    graph.metadata_props.clear()
    model.metadata_props.clear()
    model.metadata_props.update(properties)
    model.doc_string = None
    model.producer_name, model.producer_version = "csqtool", __version__
    for value in (*graph.inputs, *graph.outputs):
        value.metadata_props.clear()
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
            output.shape, output.type = None, None  # readers infer them; stored, they would take a third of the file
        _drop_defaults(node)
        # A node has the name of its result; nodes that only convert values need none.
        node.name = None if node.op_type in CONVERSIONS or node.domain else node.outputs[0].name


def _drop_defaults(node: ir.Node) -> None:
    """Remove attributes that have their default value: torch writes all of them."""
    for name, attribute in list(node.attributes.items()):
        if node.op_type in ("Conv", "ConvTranspose", "AveragePool", "MaxPool"):
            default = (
                (name in ("dilations", "strides") and set(attribute.as_ints()) == {1})
                or (name == "pads" and set(attribute.as_ints()) == {0})
                or (name == "auto_pad" and attribute.as_string() == "NOTSET")
                or (name == "kernel_shape" and "Conv" in node.op_type)  # the weight has it
                or (name == "group" and attribute.as_int() == 1)
                or (name in ("ceil_mode", "storage_order") and attribute.as_int() == 0)
                or (name == "count_include_pad" and not (attribute.as_int() and _pads(node)))
            )
        elif node.op_type == "Reshape":
            default = name == "allowzero" and not (attribute.as_int() and _may_hold_zero(constant_of(node.inputs[1])))
        elif node.op_type == "Pad":
            default = name == "mode" and attribute.as_string() == "constant"
        elif node.op_type == "Gemm":
            default = (name in ("alpha", "beta") and attribute.as_float() == 1.0) or (
                name == "transA" and attribute.as_int() == 0
            )
        else:
            default = False
        if default:
            del node.attributes[name]


def _may_hold_zero(shape: NDArray[Any] | None) -> bool:
    return shape is None or bool((shape == 0).any())


def _pads(node: ir.Node) -> bool:
    """Return whether a pooling pads its input, or may do so."""
    pads, how = node.attributes.get("pads"), node.attributes.get("auto_pad")
    return (pads is not None and any(pads.as_ints())) or (
        how is not None and how.as_string() not in ("NOTSET", "VALID")
    )


def _merge_slices(graph: ir.Graph) -> None:
    """Merge consecutive slices of different axes, which torch captures one by one, into one node."""
    editor = GraphEditor(graph)
    for second in list(graph):
        source = second.inputs[0] if second.op_type == "Slice" else None
        first = source.producer() if source is not None else None
        if first is None or first.op_type != "Slice" or only_user(first.outputs[0]) is None:
            continue
        settings = [[constant_of(value) for value in node.inputs[1:]] for node in (first, second)]
        if any(len(values) != 4 or any(v is None for v in values) for values in settings):
            continue  # starts, ends, axes, steps
        before, after = ([np.asarray(v) for v in values] for values in settings)
        if (before[2] < 0).any() or (after[2] < 0).any() or set(before[2].tolist()) & set(after[2].tolist()):
            continue  # the same axis twice, or axes that may be the same
        for position, name in enumerate(("starts", "ends", "axes", "steps")):
            joined = np.concatenate([before[position], after[position]]).astype(np.int64)
            second.replace_input_with(position + 1, editor.constant(_constant_name(name, joined), joined))
        second.replace_input_with(0, first.inputs[0])
        graph.remove(first, safe=True)


def _constant_name(kind: str, values: NDArray[Any]) -> str:
    return f"{kind}_" + "_".join("last" if v == np.iinfo(np.int64).max else str(v) for v in values.tolist())
