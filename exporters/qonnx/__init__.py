"""QONNX, which the FPGA flows FINN and hls4ml read: quantizers of any bit width as nodes of their own."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from csqtool.errors import ExportError
from csqtool.exporting import Exporter, ExportReport, Origin
from csqtool.files import write_bytes
from csqtool.finalized_file import to_bytes
from csqtool.quantized_model import QuantizedModel
from csqtool.version import __version__

MAX_PROTOBUF_BYTES = 2**31 - 1  # protobuf's own limit


class QonnxExporter(Exporter):
    """Writes a model as QONNX: `Quant` and `BipolarQuant` nodes on float weights and on activations."""

    name = "qonnx"
    suffix = ".qonnx.onnx"
    description = "QONNX for FPGA flows (FINN, hls4ml): Quant nodes with each layer's bits, one sample a batch"

    def export(self, model: QuantizedModel, path: Path, *, origin: Origin) -> ExportReport:
        """Write `model` to `path` atomically.

        Args:
            model: what to write.
            path: the file to write or replace.
            origin: builds the user's module, whose forward pass gives the graph.

        Returns:
            How each layer's weights are described, and what FINN or hls4ml do not take.

        Raises:
            ExportError: the module cannot be captured, or holds something that QONNX cannot carry.
        """
        content, report = to_qonnx(model, origin.build_module(model))
        write_bytes(path, content)
        return report


def to_qonnx(model: QuantizedModel, module: Any) -> tuple[bytes, ExportReport]:
    """Return the QONNX file of `model` and a report; the same model always gives the same bytes.

    Raises:
        ExportError: the module cannot be captured, or holds something that QONNX cannot carry.
    """
    import onnx
    import onnx_ir

    from exporters.onnx.capture import capture
    from exporters.onnx.cleanup import tidy
    from exporters.onnx.float_size import float32_size, stored_bytes
    from exporters.qonnx.graph import fix_batch, place_quantizers, spell_out

    graph_model = capture(model, module, ())
    float32_bytes = float32_size(graph_model, model)
    storage, notes = place_quantizers(graph_model, model)
    properties = {
        "csqtool.version": __version__,
        "csqtool.finalized_sha256": hashlib.sha256(to_bytes(model)).hexdigest(),
    }
    tidy(graph_model, properties)
    spell_out(graph_model.graph)
    fix_batch(graph_model.graph)
    if stored_bytes(graph_model) > MAX_PROTOBUF_BYTES:
        raise ExportError("the QONNX file holds its weights in float32, and would take more than protobuf's 2 GB")
    proto = onnx_ir.to_proto(graph_model)
    del proto.graph.value_info[:]  # readers infer them
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    report = ExportReport(float32_bytes, notes, storage=storage)
    return proto.SerializeToString(deterministic=True), report
