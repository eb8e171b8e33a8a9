"""The `.csq` file as an export format; `csqtool.csq` writes and reads it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from csqtool import csq
from csqtool.errors import ConfigError, nearest
from csqtool.exporting import Exporter, ExportReport, Origin
from csqtool.files import write_bytes
from csqtool.quantized_model import QuantizedModel


@dataclass(frozen=True)
class EncodingOptions:
    """What every format that holds a packed model can be asked for.

    Attributes:
        encoding: ``smallest`` for each tensor; ``context``: context coding where that is smaller still, slower to
            decode, in version 3 of the format; or ``dense``: two's complement throughout, fastest to decode.
    """

    encoding: str = field(
        default="smallest",
        metadata={
            "help": "smallest for each tensor of version 2; context: smaller, slower to decode, version 3; "
            "or dense: random access, fastest to decode",
            "metavar": "NAME",
        },
    )

    def __post_init__(self) -> None:
        if self.encoding not in csq.ENCODINGS:
            raise ConfigError(f"unknown encoding {self.encoding!r}; {nearest(str(self.encoding), csq.ENCODINGS)}")


@dataclass(frozen=True)
class CsqOptions(EncodingOptions):
    """Options of packing, besides the encoding.

    Attributes:
        inference: only what a device needs, with BatchNorms folded; the finalized file cannot be restored.
        with_graph: carry the ONNX graph along, so that `unpack` can write the ONNX file, too.
        float16: round the remaining float32 tensors to float16 first, see `csqtool.float16`.
        max_metric_change: how much float16 may change the task's metric; None takes 0.001.
    """

    inference: bool = field(
        default=False,
        metadata={
            "help": "Only what a device needs: BatchNorm folded into a scale and a bias a channel, no history; "
            "unpack gives a model with the folded values, not the original"
        },
    )
    with_graph: bool = field(
        default=False, metadata={"help": "Include the ONNX graph, so that unpack -o model.onnx can restore the file"}
    )
    float16: bool = field(
        default=False, metadata={"help": "Round the remaining float32 tensors to float16, if the metric allows it"}
    )
    max_metric_change: float | None = field(
        default=None, metadata={"help": "How much float16 may change the metric, 0.001 unless given", "metavar": "X"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("inference", "with_graph", "float16"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name.replace('_', '-')} is true or false, got {getattr(self, name)!r}")
        if self.inference and self.with_graph:
            raise ConfigError("--with-graph needs the archival profile: leave out --inference")
        limit = self.max_metric_change
        if limit is None:
            return
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 <= limit < math.inf:
            raise ConfigError(f"max-metric-change is a number of at least 0, got {limit!r}")
        if not self.float16:
            raise ConfigError("--max-metric-change needs --float16")


class CsqExporter(Exporter):
    """Writes a model as one `.csq` file, which `unpack` turns back into the finalized model bit for bit."""

    name = "csq"
    suffix = ".csq"
    description = "packed weights at each layer's own bit width or below, restored bit for bit by unpack"
    exact = True
    Options = CsqOptions

    def __init__(self, options: CsqOptions | None = None) -> None:
        self.options = options or CsqOptions()

    @property
    def measures(self) -> bool:
        """Whether the metric is measured, for float16."""
        return self.options.float16

    def export(self, model: QuantizedModel, path: Path, *, origin: Origin) -> ExportReport:
        """Write `model` to `path` atomically.

        Raises:
            ExportError: the format cannot represent the model, or float16 changes its metric too much.
            InputError: the module or the data that an option needs cannot be built.
        """
        options, notes = self.options, list[str]()
        if options.inference:
            content = csq.pack(model, encoding=options.encoding, inference=True, half=options.float16)
            if options.float16:
                notes.append(_metric_note(model, content, origin, options))
            notes.append("unpack gives a model with the folded values, not the original")
            write_bytes(path, content)
            return ExportReport(csq.float32_size(model), notes)
        if options.float16:
            model, note = _as_float16(model, origin, options.max_metric_change)
            notes.append(note)
        graph = None
        if options.with_graph:
            from exporters.onnx import to_onnx

            graph, report = to_onnx(model, origin.build_module(model))
            notes += report.notes
        write_bytes(path, csq.pack(model, encoding=options.encoding, onnx=graph))
        return ExportReport(csq.float32_size(model), notes)


def _as_float16(model: QuantizedModel, origin: Origin, limit: float | None) -> tuple[QuantizedModel, str]:
    """Return the model rounded to float16, and a note on its metric."""
    from csqtool.float16 import MAX_METRIC_CHANGE, to_float16

    rounded = to_float16(
        model,
        near=origin.path,
        factory=origin.factory,
        data=origin.data,
        max_metric_change=MAX_METRIC_CHANGE if limit is None else limit,
    )
    record = rounded.info.float16
    assert record is not None
    return rounded, (
        f"float16 changes the metric from {record.metric_float32:.4f} to {record.metric:.4f}; "
        "unpack restores the rounded model, not the original"
    )


def _metric_note(model: QuantizedModel, content: bytes, origin: Origin, options: CsqOptions) -> str:
    """Return a note on the metrics of a model and of its inference file.

    Raises:
        ExportError: the file changes it too much.
    """
    from csqtool.float16 import MAX_METRIC_CHANGE, measured

    limit = options.max_metric_change
    _, before, after, _ = measured(
        model, lambda: csq.read_csq(content, where="the file"), near=origin.path, factory=origin.factory,
        data=origin.data, max_metric_change=MAX_METRIC_CHANGE if limit is None else limit,
    )  # fmt: skip
    return f"float16 changes the metric from {before:.4f} to {after:.4f}"
