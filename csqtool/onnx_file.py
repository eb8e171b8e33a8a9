"""Reading an ONNX file's protobuf, for everything that looks into one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csqtool.errors import FormatError

if TYPE_CHECKING:
    import onnx


def parse_onnx(content: bytes, *, where: str) -> onnx.ModelProto:
    """Return the model in an ONNX file.

    Raises:
        FormatError: it is no ONNX file.
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
    return proto
