"""Reading an ONNX file's protobuf, for everything that looks into one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csqtool.errors import FormatError

if TYPE_CHECKING:
    import onnx


def parse_onnx(content: bytes, *, where: str) -> onnx.ModelProto:
    """Return the model in an ONNX file.

    Raises:
        FormatError: it is no ONNX file, or one that keeps tensors in files beside it.
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
    outside = [t.name for t in proto.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    if outside:
        raise FormatError(
            f"{where} keeps {len(outside)} tensors, {outside[0]!r} first, in files beside it; save it as one file "
            "(onnx.save without external data): what is checked must be what is shipped"
        )
    return proto


def foreign_operators(proto: onnx.ModelProto) -> list[str]:
    """Return the operators that are neither standard ones nor functions of the file made of standard ones."""
    standard = ("", "ai.onnx")
    functions = {(function.domain, function.name) for function in proto.functions}
    nodes = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    used = {(node.domain, node.op_type) for node in nodes if node.domain not in standard}
    return sorted(f"{domain}.{name}" for domain, name in used - functions)
