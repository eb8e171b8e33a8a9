"""One node for each weight and one for each quantized activation, in files that need functions anyway.

A weight's integers and scales are attributes of its node, so that neither needs a name. The functions contain the
operators that were there before: runtimes inline functions before they optimize, and fuse the same kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir import convenience

from exporters.onnx.choosing import WaitingWeight, choose
from exporters.onnx.coding import SYMBOLS, Code, CodedWeight, symbols_function
from exporters.onnx.functions import FUNCTION_DOMAIN, FunctionBody
from exporters.onnx.graph import constant_of, name_value, only_user
from exporters.onnx.weight_function import WeightFunction


def compact(graph: ir.Graph, waiting: Mapping[ir.Node, WaitingWeight]) -> tuple[dict[str, ir.Function], dict[str, str]]:
    """Merge the nodes that dequantize each such weight into one, and each quantizer and dequantizer into one.

    Args:
        graph: changed in place.
        waiting: the placeholder node of each weight that a function gives.

    Returns:
        The functions in use, by name, and how each layer is stored.
    """
    places = {node: _Place.of(node) for node in waiting}
    chosen = choose(list(waiting.values()), [(place.form, place.transposed) for place in places.values()])
    kinds: dict[str, WeightFunction] = {}
    symbols: dict[int, ir.Value] = {}
    for (node, place), weight in zip(places.items(), chosen, strict=True):
        inputs = []
        if isinstance(weight, CodedWeight):
            if id(weight.code) not in symbols:
                symbols[id(weight.code)] = _symbols(graph, weight.code, f"symbols{len(symbols) or ''}")
            inputs.append(symbols[id(weight.code)])
        kind = WeightFunction.of(weight, place.form, place.transposed)
        kinds[kind.name] = kinds.get(kind.name, kind).joined(kind)
        attributes = [*weight.attributes(), ir.AttrInt64s("shape", weight.shape)]
        if place.scale is not None:
            attributes.append(ir.AttrTensor("scale", ir.tensor(place.scale)))
        call = ir.Node(FUNCTION_DOMAIN, kind.name, inputs, attributes)
        _replace_chain(graph, node, place.last, call, waiting[node].name)
    functions = {name: kind.build() for name, kind in kinds.items()}
    if symbols:
        functions[SYMBOLS] = symbols_function()
    for node in list(graph):
        if node.op_type == "QuantizeLinear" and not node.domain:
            _merge_quantizer(graph, node, functions)
    return functions, {one.name: str(weight) for one, weight in zip(waiting.values(), chosen, strict=True)}


def _symbols(graph: ir.Graph, code: Code, name: str) -> ir.Value:
    """Insert the node that decodes, before all others, and return its output."""
    node = ir.Node(FUNCTION_DOMAIN, SYMBOLS, [], code.attributes())
    graph.insert_before(graph[0], node)
    name_value(node.outputs[0], name)
    return node.outputs[0]


@dataclass(frozen=True)
class _Place:
    """What scales the integers of a placeholder node.

    Attributes:
        last: the node that gives the weight.
        form: as in `WeightFunction`.
        transposed: the two axes are exchanged before scaling.
        scale: the scales, None where the form is ``integers``.
    """

    last: ir.Node
    form: str
    transposed: bool
    scale: NDArray[Any] | None

    @classmethod
    def of(cls, node: ir.Node) -> _Place:
        transposed = False
        user = only_user(node.outputs[0])
        if user is not None and user.op_type == "Transpose" and tuple(user.attributes["perm"].as_ints()) == (1, 0):
            transposed, user = True, only_user(user.outputs[0])
        if user is not None and user.op_type == "DequantizeLinear" and _scale_axis(user) in (None, 0):
            if (scale := constant_of(user.inputs[1])) is not None:
                return cls(user, "dequantize", transposed, scale)
        elif user is not None and user.op_type == "Cast":
            factor = only_user(user.outputs[0])
            if factor is not None and factor.op_type == "Mul" and (scale := constant_of(factor.inputs[1])) is not None:
                return cls(factor, "multiply", transposed, scale)
        return cls(node, "integers", False, None)


def _scale_axis(node: ir.Node) -> int | None:
    """Return the axis of a DequantizeLinear's scales, None where there is one scale."""
    scale = constant_of(node.inputs[1])
    return None if scale is None or not scale.ndim else node.attributes["axis"].as_int()


def _merge_quantizer(graph: ir.Graph, quantize: ir.Node, functions: dict[str, ir.Function]) -> None:
    """Replace QuantizeLinear, a Clip if there is one, and DequantizeLinear by one node."""
    bounds = None
    last = only_user(quantize.outputs[0])
    if last is not None and last.op_type == "Clip":
        bounds = [constant_of(bound) for bound in last.inputs[1:]]
        last = only_user(last.outputs[0])
    if last is None or last.op_type != "DequantizeLinear" or list(last.inputs[1:]) != list(quantize.inputs[1:]):
        return
    scale, zero_point = (constant_of(value) for value in quantize.inputs[1:])
    if scale is None or scale.ndim or zero_point is None:
        return
    affine = bool(zero_point)
    function = _quantizer(affine, bounds is not None)
    functions.setdefault(function.name, function)
    attributes = [ir.AttrFloat32("scale", float(scale))]
    if affine:
        attributes.append(ir.AttrInt64("zero_point", int(zero_point)))
    for name, bound in zip(("low", "high"), bounds or (), strict=False):
        assert bound is not None
        attributes.append(ir.AttrInt64(name, int(bound)))
    node = ir.Node(FUNCTION_DOMAIN, function.name, [quantize.inputs[0]], attributes)
    assert last.outputs[0].name is not None
    _replace_chain(graph, quantize, last, node, last.outputs[0].name)


def _quantizer(affine: bool, clipped: bool) -> ir.Function:
    """Return the function of an activation quantizer: to uint8, with a zero point or 0, with or without bounds."""
    body = FunctionBody("x")
    scale = body.attribute("value_float", "scale", ir.AttributeType.FLOAT)

    def integer(name: str) -> ir.Value:
        return body.add("Cast", body.attribute("value_int", name, ir.AttributeType.INT), to=ir.DataType.UINT8)

    zero_point = integer("zero_point") if affine else body.constant(np.uint8(0))
    integers = body.add("QuantizeLinear", body.inputs[0], scale, zero_point)
    if clipped:
        integers = body.add("Clip", integers, integer("low"), integer("high"))
    name = "FakeQuantize" + "Affine" * affine + "Clipped" * clipped
    return body.function(name, body.add("DequantizeLinear", integers, scale, zero_point))


def _replace_chain(graph: ir.Graph, first: ir.Node, last: ir.Node, node: ir.Node, name: str) -> None:
    """Replace a chain of nodes, each the only user of the one before, by `node`; call its result `name`."""
    graph.insert_before(first, node)
    old = last.outputs[0]
    node.outputs[0].shape, node.outputs[0].type = old.shape, old.type
    convenience.replace_all_uses_with(old, node.outputs[0], replace_graph_outputs=True)
    name_value(node.outputs[0], name)
    while last is not first:
        before = last.inputs[0]
        assert before is not None
        producer = before.producer()
        graph.remove(last, safe=True)
        assert producer is not None
        last = producer
    graph.remove(first, safe=True)
