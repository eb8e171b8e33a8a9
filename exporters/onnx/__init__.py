"""ONNX with integer weights of k bits, Q/DQ pairs on activations, standard operators only."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from csqtool.errors import CheckFailed, ExportError
from csqtool.exporting import Exporter, ExportReport, Origin
from csqtool.files import write_bytes
from csqtool.finalized_file import to_bytes
from csqtool.quantized_model import QuantizedModel
from csqtool.version import __version__
from exporters.onnx.options import OnnxOptions

MAX_PROTOBUF_BYTES = 2**31 - 1  # protobuf's own limit; larger models need files beside the ONNX file

__all__ = ["OnnxExporter", "OnnxOptions", "to_onnx"]


class OnnxExporter(Exporter):
    """Writes a model as one ONNX file that an unmodified onnxruntime loads and runs on integer kernels."""

    name = "onnx"
    suffix = ".onnx"
    description = "ONNX, standard operators: weights packed at k bits or native types, integer kernels in onnxruntime"
    Options = OnnxOptions

    def __init__(self, options: OnnxOptions | None = None) -> None:
        self.options = options or OnnxOptions()

    def export(self, model: QuantizedModel, path: Path, *, origin: Origin) -> ExportReport:
        """Write `model` to `path` atomically.

        Args:
            model: what to write.
            path: the file to write or replace.
            origin: builds the user's module, whose forward pass gives the graph.

        Returns:
            What stays in float, and why.

        Raises:
            ExportError: the model holds something that ONNX, or the chosen runtime, cannot carry.
            CheckFailed: `strict_integer` is set and a compute node runs in float.
        """
        content, report = to_onnx(model, origin.build_module(model), self.options)
        if self.options.strict_integer and report.float_nodes:
            first = report.float_nodes[0]
            count = f"{len(report.float_nodes)} compute nodes run" if len(report.float_nodes) > 1 else "a node runs"
            raise CheckFailed(
                f"{count} in float: {first.name} ({first.operator}), {first.reason}; "
                "export without --strict-integer to list them"
            )
        write_bytes(path, content)
        return report


def to_onnx(model: QuantizedModel, module: Any, options: OnnxOptions | None = None) -> tuple[bytes, ExportReport]:
    """Return the ONNX file of `model` and a report; the same model always gives the same bytes.

    Everything is checked here, before anything is written.

    Raises:
        ExportError: the module cannot be captured, or holds something that ONNX, or the runtime, cannot carry.
    """
    from exporters.onnx.capture import capture
    from exporters.onnx.float_nodes import report_on
    from exporters.onnx.float_size import float32_size

    options = options or OnnxOptions()
    options.check(model)
    graph_model = capture(model, module, options.dynamic)
    float32_bytes = float32_size(graph_model, model)
    proto, notes, storage = rewritten_proto(graph_model, model, options)
    content = proto.SerializeToString(deterministic=True)
    return content, report_on(proto, content, model, options, notes, storage, float32_bytes)


def rewritten_proto(graph_model: Any, model: QuantizedModel, options: OnnxOptions) -> tuple[Any, list[str], Any]:
    """Return a captured graph as the `ModelProto` of a file, notes, and how each layer's integers are stored.

    Args:
        graph_model: from `exporters.onnx.capture.capture`; it is changed.
        model: the finalized model.
        options: what the file is made for.

    Raises:
        ExportError: it holds something that ONNX, or the runtime, cannot carry.
    """
    import onnx

    from exporters.onnx.cleanup import tidy
    from exporters.onnx.float_size import stored_bytes
    from exporters.onnx.rewrite import rewrite

    notes, storage = rewrite(graph_model, model, options)
    properties = {
        "csqtool.version": __version__,
        "csqtool.finalized_sha256": hashlib.sha256(to_bytes(model)).hexdigest(),
    }
    tidy(graph_model, properties)
    _check_size(stored_bytes(graph_model))  # before protobuf sees it, which cannot count beyond its limit
    proto = _proto(graph_model)
    _check_size(proto.ByteSize())
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    return proto, notes, storage


def _check_size(size_bytes: int) -> None:
    if size_bytes > MAX_PROTOBUF_BYTES:
        raise ExportError(f"the ONNX file would take {size_bytes} bytes, protobuf carries at most 2 GB")


def _proto(graph_model: Any) -> Any:
    import onnx_ir

    proto = onnx_ir.to_proto(graph_model)
    del proto.graph.value_info[:]  # initializers carry their types, and readers infer the others
    return proto
