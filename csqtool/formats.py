"""Deployable formats: the protocol of an exporter, the registry, and the verbs `export`, `pack` and `unpack`."""

from __future__ import annotations

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

    def build_module() -> Any:
        from csqtool.rebuild import rebuilt_module

        return rebuilt_module(finalized, factory=model, near=source)

    notes = exporter.export(finalized, output, build_module=build_module)
    float32_bytes = exporter.float32_size(finalized, build_module=build_module)
    return Exported(output, output.stat().st_size, float32_bytes, notes)


def pack(source: Path, output: Path) -> Exported:
    """Write a finalized model as one bit-packed ``.csq`` file."""
    return export(source, output, format="csq")


def unpack(source: Path, output: Path) -> QuantizedModel:
    """Turn a ``.csq`` file back into the finalized model file it was packed from, bit for bit.

    Raises:
        InputError: `source` is missing, damaged or no ``.csq`` file, or `output` cannot be written.
    """
    from csqtool.files import read_bytes, write_bytes
    from csqtool.finalized_file import parse_finalized

    exporter: Any = load_exporter("csq")
    finalized: bytes = exporter.unpack(read_bytes(source), where=str(source))
    write_bytes(output, finalized)
    return parse_finalized(finalized, where=str(output))
