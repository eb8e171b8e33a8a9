"""One node for each weight and one for each quantized activation, in files that need functions anyway.

A weight's stream and scales are attributes of its node, so that neither needs a name. The functions contain the
operators that were there before: runtimes inline functions before they optimize, and fuse the same kernels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir import convenience

from exporters.onnx.functions import FUNCTION_DOMAIN, FunctionBody
from exporters.onnx.graph import constant_of, name_value, only_user
from exporters.onnx.packing import PackedWeight, WeightFunction


def compact(graph: ir.Graph, packed: Mapping[ir.Node, tuple[str, PackedWeight]]) -> dict[str, ir.Function]:
    """Merge the nodes that dequantize each packed weight into one, and each quantizer and dequantizer into one.

    Args:
        graph: changed in place.
        packed: the placeholder node of each packed weight, with the layer's name.

    Returns:
        The functions in use, by name.
    """
    kinds: dict[str, WeightFunction] = {}
    for node, (name, weight) in packed.items():
        kind = _merge_weight(graph, node, name, weight)
        kinds[kind.name] = kinds.get(kind.name, kind).joined(kind)
    functions = {name: kind.build() for name, kind in kinds.items()}
    for node in list(graph):
        if node.op_type == "QuantizeLinear" and not node.domain:
            _merge_quantizer(graph, node, functions)
    return functions


def _merge_weight(graph: ir.Graph, node: ir.Node, name: str, weight: PackedWeight) -> WeightFunction:
    """Replace a placeholder and the nodes that scale its integers by one node; return its function."""
    last, form, transposed, scale = node, "integers", False, None
    user = only_user(node.outputs[0])
    if user is not None and user.op_type == "Transpose" and tuple(user.attributes["perm"].as_ints()) == (1, 0):
        last, transposed, user = user, True, only_user(user.outputs[0])
    if user is not None and user.op_type == "DequantizeLinear" and _scale_axis(user) in (None, 0):
        last, form, scale = user, "dequantize", constant_of(user.inputs[1])
    elif user is not None and user.op_type == "Cast":
        factor = only_user(user.outputs[0])
        if factor is not None and factor.op_type == "Mul":
            last, form, scale = factor, "multiply", constant_of(factor.inputs[1])
    if scale is None:
        last, form, transposed = node, "integers", False
    wide = weight.dtype == np.int16
    kind = WeightFunction(form, wide, weight.levels is not None, transposed, weight.aligned, weight.padded)
    attributes = [ir.AttrTensor("stream", ir.tensor(weight.stream)), ir.AttrInt64s("bits", [weight.bits])]
    attributes.append(ir.AttrInt64s("shape", weight.shape))
    if weight.levels is not None:
        attributes.append(ir.AttrTensor("levels", ir.tensor(weight.levels)))
    if scale is not None:
        attributes.append(ir.AttrTensor("scale", ir.tensor(scale)))
    _replace_chain(graph, node, last, ir.Node(FUNCTION_DOMAIN, kind.name, [], attributes), name)
    return kind


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
