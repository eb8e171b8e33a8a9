"""The ONNX graph in a `.csq` package: does it come out whole, and is it this model's?"""

from __future__ import annotations

from typing import Any

from csqtool.errors import FormatError
from csqtool.formats import load_exporter


def graph_verdict(content: bytes, finalized_sha256: str, *, where: str) -> tuple[bool, str] | None:
    """Return whether the ONNX file in a package is rebuilt and names this finalized model, and words for it.

    Args:
        content: the package.
        finalized_sha256: of the finalized file that `unpack` makes of it.
        where: the file's name, for messages.

    Returns:
        None where the package carries no graph.
    """
    import onnx

    exporter: Any = load_exporter("csq")
    if not exporter.carries_onnx(content):
        return None
    try:
        rebuilt = exporter.unpack_onnx(content, where=where)
    except FormatError as error:
        return False, str(error)
    properties = {p.key: p.value for p in onnx.ModelProto.FromString(rebuilt).metadata_props}
    if properties.get("csqtool.finalized_sha256") != finalized_sha256:
        return False, "it is the graph of another finalized model"
    return True, f"rebuilt bit for bit, {len(rebuilt)} bytes"
