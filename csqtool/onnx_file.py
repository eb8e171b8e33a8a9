"""Reading the protobuf of ONNX files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from csqtool.errors import FormatError
from csqtool.onnx_limits import check_limits

if TYPE_CHECKING:
    import onnx


def parse_onnx(content: bytes, *, where: str) -> onnx.ModelProto:
    """Return the model in an ONNX file.

    Raises:
        FormatError: it is no ONNX file, or one that `csqtool.onnx_limits` refuses, such as one that keeps tensors in
            files beside it.
    """
    import onnx
    from google.protobuf.message import DecodeError

    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except (DecodeError, RuntimeError) as error:
        raise FormatError(f"{where} is not an ONNX file: {error}") from error
    if not proto.graph.node or not proto.opset_import:
        raise FormatError(f"{where} is not an ONNX file: it holds no graph")
    check_limits(proto, where=where)
    return proto


def foreign_operators(proto: onnx.ModelProto) -> list[str]:
    """Return the operators that are neither standard ones nor functions of the file made of standard ones."""
    standard = ("", "ai.onnx")
    functions = {(function.domain, function.name) for function in proto.functions}
    nodes = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    used = {(node.domain, node.op_type) for node in nodes if node.domain not in standard}
    return sorted(f"{domain}.{name}" for domain, name in used - functions)


def stored_tensors(proto: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Yield every tensor of the graph by name, in the file's order: those of nodes as ``OUTPUT.ATTRIBUTE``."""
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield f"{node.output[0]}.{attribute.name}", attribute.t
    for tensor in proto.graph.initializer:
        yield tensor.name, tensor


def flattened(proto: onnx.ModelProto, *, where: str) -> onnx.ModelProto:
    """Return the same graph with its functions inlined and without Constant nodes.

    The results of the graph's nodes keep their names; values inside functions get new ones.

    Raises:
        FormatError: a function cannot be inlined.
    """
    import numpy as np
    import onnx
    from onnx import numpy_helper

    from csqtool.onnx_isolated import inlined

    try:
        flat = inlined(proto)
        nodes = []
        for node in flat.graph.node:
            if node.op_type != "Constant" or node.domain or len(node.attribute) != 1:
                nodes.append(node)
                continue
            value = onnx.helper.get_attribute_value(node.attribute[0])
            kinds = {"value_float": "f4", "value_floats": "f4", "value_int": "i8", "value_ints": "i8"}
            if (kind := kinds.get(node.attribute[0].name)) is not None:
                value = numpy_helper.from_array(np.asarray(value, kind))
            elif not isinstance(value, onnx.TensorProto):
                nodes.append(node)
                continue
            flat.graph.initializer.append(value)
            flat.graph.initializer[-1].name = node.output[0]
    except (RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())  # onnx quotes the file over several lines
        raise FormatError(f"{where}: one of its functions cannot be inlined: {reason:.200}") from error
    del flat.graph.node[:]
    flat.graph.node.extend(nodes)
    return flat
