"""The verbs `pack` and `unpack`: a finalized model as a `.csq` file, and back."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from csqtool import csq
from csqtool.errors import ConfigError
from csqtool.exporting import Exported, ExportReport, exported, load_exporter, module_builder
from csqtool.files import read_bytes, write_bytes
from csqtool.finalized_file import parse_finalized, read_exact
from csqtool.quantized_model import QuantizedModel


def pack(
    source: Path,
    output: Path,
    *,
    encoding: str = "smallest",
    with_graph: bool = False,
    float16: bool = False,
    max_metric_change: float | None = None,
    model: str | None = None,
    data: str | None = None,
) -> Exported:
    """Write a finalized model as one bit-packed ``.csq`` file.

    Args:
        source: the finalized ``.safetensors`` file.
        output: the file to write.
        encoding: ``smallest`` for each tensor, or ``dense``: two's complement throughout, fastest to decode.
        with_graph: carry the ONNX graph along, so that `unpack` can write the ONNX file, too.
        float16: round what is left in float32 to float16 first, see `csqtool.float16`.
        max_metric_change: how far float16 may move the task's metric; None takes 0.001.
        model: factory of the PyTorch module, instead of the one recorded in the finalized model.
        data: data source whose test set decides about float16, instead of the recorded one.

    Raises:
        InputError: the source is no finalized model, the output cannot be written, or float16 is refused.
    """
    if not float16 and (max_metric_change is not None or data is not None):
        raise ConfigError("--max-metric-change and --data only go with --float16")
    exporter: Any = load_exporter("csq")
    finalized = read_exact(source)
    if float16:
        from csqtool.float16 import MAX_METRIC_CHANGE, to_float16

        limit = MAX_METRIC_CHANGE if max_metric_change is None else max_metric_change
        finalized = to_float16(finalized, near=source, factory=model, data=data, max_metric_change=limit)
    build_module = module_builder(finalized, model, source)
    onnx, notes = None, []
    if with_graph:
        with tempfile.TemporaryDirectory() as folder:
            graph = Path(folder) / "model.onnx"
            report = load_exporter("onnx").export(finalized, graph, build_module=build_module)
            notes += report.notes if isinstance(report, ExportReport) else report
            onnx = graph.read_bytes()
    notes += exporter.export(finalized, output, encoding=encoding, onnx=onnx)
    if float16 and (origin := finalized.info.float16) is not None:
        notes.append(
            f"float16 moves the metric from {origin.metric_float32:.4f} to {origin.metric:.4f}; "
            "unpack gives back the rounded model, not the one that was packed"
        )
    return exported(exporter, finalized, output, build_module, notes)


def unpack(source: Path, output: Path) -> QuantizedModel:
    """Turn a ``.csq`` file back into the finalized model file it was packed from, bit for bit.

    Where `output` ends in ``.onnx``, write instead the ONNX file that ``export`` writes of that model, which a
    package made with its graph carries.

    Raises:
        InputError: `source` is missing, damaged or no ``.csq`` file, or `output` cannot be written.
    """
    content = read_bytes(source)
    finalized: bytes = csq.unpack(content, where=str(source))
    unpacked = finalized
    if output.suffix == ".onnx":
        unpacked = csq.unpack_onnx(content, where=str(source))
    write_bytes(output, unpacked)
    return parse_finalized(finalized, where=str(source))
