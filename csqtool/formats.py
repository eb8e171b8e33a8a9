"""Deployable formats: the protocol of an exporter, the registry, and the verbs `export`, `pack` and `unpack`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from csqtool.errors import ConfigError, nearest
from csqtool.finalized_file import read_finalized
from csqtool.quantized_model import QuantizedModel


class Exporter(Protocol):
    """Writes a `QuantizedModel` in one format. Register the class under the entry point group ``csqtool.exporters``.

    Attributes:
        name: what ``--format`` calls it.
        suffix: how its files end.
        description: one line for ``csqtool formats``.
    """

    name: str
    suffix: str
    description: str

    def export(self, model: QuantizedModel, path: Path, *, build_module: Callable[[], Any]) -> list[str]:
        """Write `model` to `path`, beside it first and then renamed into place.

        Args:
            model: what to write.
            path: the file to write or replace.
            build_module: returns the user's `torch.nn.Module`, freshly built, for formats that carry a graph.

        Returns:
            Notes for the user, a line each.

        Raises:
            ExportError: the model holds something that the format cannot carry.
        """
        ...

    def float32_size(self, model: QuantizedModel, *, build_module: Callable[[], Any]) -> int:
        """Return the bytes that the float32 model takes, exported the same way."""
        ...


@dataclass(frozen=True)
class Exported:
    """A written file.

    Attributes:
        path: where it is.
        size_bytes: its size.
        float32_bytes: the size of the float32 model exported the same way.
        notes: what the exporter has to say.
    """

    path: Path
    size_bytes: int
    float32_bytes: int
    notes: list[str]


def installed_formats() -> dict[str, str]:
    """Return the names of the installed formats and a description each."""
    return {e.name: e.load().description for e in sorted(entry_points(group="csqtool.exporters"))}


def load_exporter(name: str) -> Exporter:
    """Return an exporter.

    Raises:
        ConfigError: no such format is installed.
    """
    found = entry_points(group="csqtool.exporters")
    for entry in found:
        if entry.name == name:
            exporter: Exporter = entry.load()()
            return exporter
    raise ConfigError(f"unknown format {name!r}; {nearest(name, [entry.name for entry in found])}")


def export(source: Path, output: Path, *, format: str, model: str | None = None) -> Exported:  # noqa: A002 - the verb's word
    """Write a finalized model in a deployable format.

    Args:
        source: the finalized ``.safetensors`` file.
        output: the file to write.
        format: a format's name, such as ``onnx`` or ``csq``.
        model: factory of the PyTorch module, instead of the one recorded in the finalized model.

    Raises:
        InputError: the source is no finalized model, the format is unknown, or the output cannot be written.
    """
    exporter = load_exporter(format)
    finalized = read_finalized(source)
    build_module = _module_builder(finalized, model, source)
    notes = exporter.export(finalized, output, build_module=build_module)
    return _exported(exporter, finalized, output, build_module, notes)


def _module_builder(finalized: QuantizedModel, factory: str | None, near: Path) -> Callable[[], Any]:
    def build_module() -> Any:
        from csqtool.finalize import rebuilt_module

        return rebuilt_module(finalized, factory=factory, near=near)

    return build_module


def _exported(
    exporter: Exporter, finalized: QuantizedModel, output: Path, build_module: Callable[[], Any], notes: list[str]
) -> Exported:
    files = [output] if output.is_file() else sorted(output.iterdir())
    float32_bytes = exporter.float32_size(finalized, build_module=build_module)
    return Exported(output, sum(file.stat().st_size for file in files), float32_bytes, notes)


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
    exporter: Any = load_exporter("csq")
    finalized = read_finalized(source)
    if float16:
        from csqtool.float16 import MAX_METRIC_CHANGE, to_float16

        limit = MAX_METRIC_CHANGE if max_metric_change is None else max_metric_change
        finalized = to_float16(finalized, near=source, factory=model, data=data, max_metric_change=limit)
    build_module = _module_builder(finalized, model, source)
    onnx, notes = None, []
    if with_graph:
        with tempfile.TemporaryDirectory() as folder:
            graph = Path(folder) / "model.onnx"
            notes = load_exporter("onnx").export(finalized, graph, build_module=build_module)
            onnx = graph.read_bytes()
    notes += exporter.export(finalized, output, encoding=encoding, onnx=onnx)
    if float16:
        record = finalized.info["float16"]
        notes.append(
            f"float16 moves the metric from {record['metric_float32']:.4f} to {record['metric']:.4f}; "
            "unpack gives back the rounded model, not the one that was packed"
        )
    return _exported(exporter, finalized, output, build_module, notes)


def unpack(source: Path, output: Path) -> QuantizedModel:
    """Turn a ``.csq`` file back into the finalized model file it was packed from, bit for bit.

    Where `output` ends in ``.onnx``, write instead the ONNX file that ``export`` writes of that model, which a
    package made with its graph carries.

    Raises:
        InputError: `source` is missing, damaged or no ``.csq`` file, or `output` cannot be written.
    """
    from csqtool.files import read_bytes, write_bytes
    from csqtool.finalized_file import parse_finalized

    exporter: Any = load_exporter("csq")
    content = read_bytes(source)
    finalized: bytes = exporter.unpack(content, where=str(source))
    unpacked = finalized
    if output.suffix == ".onnx":
        unpacked = exporter.unpack_onnx(content, where=str(source))
    write_bytes(output, unpacked)
    return parse_finalized(finalized, where=str(source))
