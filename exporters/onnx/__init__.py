"""ONNX in QDQ form: integer weights behind DequantizeLinear, Q/DQ pairs on activations, standard operators only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from csqtool import __version__
from csqtool.errors import ExportError
from csqtool.files import write_bytes
from csqtool.finalized_file import to_bytes
from csqtool.quantized_model import QuantizedModel

MAX_PROTOBUF_BYTES = 2**31 - 1  # protobuf's own limit; beyond it weights would have to stand in other files


class OnnxExporter:
    """Writes a model as one ONNX file that stock onnxruntime loads and runs on integer kernels."""

    name = "onnx"
    suffix = ".onnx"
    description = "ONNX with QDQ nodes, standard operators, BatchNorm folded into per-channel scales"

    def export(self, model: QuantizedModel, path: Path, *, build_module: Callable[[], Any]) -> list[str]:
        """Write `model` to `path` atomically.

        Args:
            model: what to write.
            path: the file to write or replace.
            build_module: returns the user's module, freshly built; its forward pass gives the graph.

        Returns:
            Notes for the user: what stays in float, and why.

        Raises:
            ExportError: the model holds something that ONNX cannot carry.
        """
        content, notes = to_onnx(model, build_module())
        write_bytes(path, content)
        return notes

    def float32_size(self, model: QuantizedModel, *, build_module: Callable[[], Any]) -> int:
        """Return the bytes of the ONNX file of the same network in float32, BatchNorm folded."""
        from exporters.onnx.capture import capture_float
        from exporters.onnx.cleanup import tidy

        graph_model = capture_float(model, build_module())
        tidy(graph_model, {})
        return int(_proto(graph_model).ByteSize())


def to_onnx(model: QuantizedModel, module: Any) -> tuple[bytes, list[str]]:
    """Return the ONNX file of `model` and notes for the user; the same model always gives the same bytes.

    Raises:
        ExportError: the module cannot be captured, or holds something that ONNX cannot carry.
    """
    import onnx

    from exporters.onnx.capture import capture
    from exporters.onnx.cleanup import tidy
    from exporters.onnx.rewrite import rewrite

    graph_model = capture(model, module)
    notes = rewrite(graph_model, model)
    properties = {
        "csqtool.version": __version__,
        "csqtool.finalized_sha256": hashlib.sha256(to_bytes(model)).hexdigest(),
    }
    tidy(graph_model, properties)
    proto = _proto(graph_model)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    if proto.ByteSize() > MAX_PROTOBUF_BYTES:
        raise ExportError(f"the ONNX file would take {proto.ByteSize()} bytes, protobuf carries at most 2 GB")
    return proto.SerializeToString(deterministic=True), notes


def _proto(graph_model: Any) -> Any:
    import onnx_ir

    return onnx_ir.to_proto(graph_model)
