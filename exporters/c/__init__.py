"""C: a complete integer inference in C99, or the packed weights as an array with their reader."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from csqtool.errors import ConfigError
from csqtool.exporting import Exporter, ExportReport, Origin
from csqtool.finalized_file import to_bytes
from csqtool.quantized_model import QuantizedModel
from csqtool.version import __version__
from exporters.c.options import COptions


class CExporter(Exporter):
    """Writes a folder of C99; see docs/c-inference.md for the inference, docs/csq-format.md for the weights' reader."""

    name = "c"
    suffix = ""
    description = "a folder of C99: inference, in integers where activations are, or packed weights and their reader"
    exact = True
    Options = COptions

    def __init__(self, options: COptions | None = None) -> None:
        self.options = options or COptions()

    def export(self, model: QuantizedModel, path: Path, *, origin: Origin) -> ExportReport:
        """Write the folder `path`; see `write_folder` for what an interruption leaves.

        Returns:
            How to compile it, and what it takes.

        Raises:
            ExportError: the network holds something that the code cannot compute; names the node.
            ConfigError: an option is not one of what is written.
        """
        from exporters.c.package import export_package, write_folder

        content = self.options.content
        if not model.activations and self.options.requantize != COptions.requantize:
            raise ConfigError("--requantize is for quantized activations (--act-bits); this model's are in float32")
        if content == "weights" or (content == "auto" and not model.activations):
            if self.options.single_file:
                raise ConfigError("--single-file is for an inference, which needs quantized activations (--act-bits)")
            return export_package(model, path, encoding=self.options.encoding)
        if self.options.encoding != COptions.encoding:
            raise ConfigError("--encoding is for packed weights (--content weights); an inference has --weights")
        files, report = to_c(model, origin.build_module(model), self.options)
        write_folder(path, files)
        return report


def to_c(model: QuantizedModel, module: Any, options: COptions) -> tuple[dict[str, bytes], ExportReport]:
    """Return the files of an inference, by name, and a report.

    Args:
        model: the finalized model.
        module: the user's module, freshly built.
        options: how weights are stored, and results rounded.

    Raises:
        ExportError: as `CExporter.export`.
    """
    from exporters.c.memory import plan
    from exporters.c.plan_file import document
    from exporters.c.program import Conv
    from exporters.c.single_file import merged
    from exporters.c.storage import store
    from exporters.c.translate import translate
    from exporters.c.write import Writer
    from exporters.onnx import OnnxOptions, rewritten_proto
    from exporters.onnx.capture import capture

    graph = capture(model, module, ())
    proto, notes, _ = rewritten_proto(graph, model, OnnxOptions(weights="int8", runtime="generic"))
    program = translate(proto, in_float=options.requantize == "float")
    layers = [step for step in program.steps if isinstance(step, Conv)]
    for step in layers:
        step.stored = store(step.q.reshape(len(step.q), -1), options.weights)
    placed = plan(program)
    sha256 = hashlib.sha256(to_bytes(model)).hexdigest()
    files = Writer(program, placed, sha256, __version__).files()
    if options.single_file:
        files = merged(files)
    files = {"arena.json": document(program, placed, sha256), **files}
    flash = sum(step.stored.rows.size for step in layers)
    as_int8 = sum(step.q.size for step in layers)
    float32_bytes = sum(4 * (step.q.size + step.bias.size) for step in layers)
    notes = [
        *notes,
        f"weights take {flash} bytes of flash, {flash / as_int8:.2f} of one byte a weight",
        f"arena: {placed.size} bytes; the values that are alive at a time take {placed.least}",
        "make; ./example runs an input of zeros",
    ]
    return files, ExportReport(float32_bytes, notes, storage={step.layer: step.stored.name for step in layers})
