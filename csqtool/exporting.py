"""Deployable formats: the protocol of an exporter, the registry, and the verb `export`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from csqtool.errors import ConfigError, nearest
from csqtool.finalized_file import read_exact, read_finalized
from csqtool.quantized_model import QuantizedModel
from csqtool.registry import Registry


@dataclass(frozen=True)
class FloatNode:
    """A node that computes in float: its name, its operator and the reason."""

    name: str
    operator: str
    reason: str


@dataclass(frozen=True)
class ExportReport:
    """What an exporter has to say about the file it wrote.

    Attributes:
        notes: a line each.
        kernels: what the target runtime runs, operator to count; empty where that is not known.
        float_nodes: the compute nodes that run in float.
        storage: layer to how its integers are stored.
    """

    notes: list[str] = field(default_factory=list)
    kernels: Mapping[str, int] = field(default_factory=dict)
    float_nodes: list[FloatNode] = field(default_factory=list)
    storage: Mapping[str, str] = field(default_factory=dict)


class Exporter(Protocol):
    """Writes a `QuantizedModel` in one format. Register the class under the entry point group ``csqtool.exporters``.

    Attributes:
        name: what ``--format`` calls it.
        suffix: how its files end.
        description: one line for ``csqtool formats``.

    A format with options has a class attribute ``Options``, a frozen dataclass whose fields are their names, and
    takes an instance of it when it is constructed.
    """

    name: str
    suffix: str
    description: str

    def export(self, model: QuantizedModel, path: Path, *, build_module: Callable[[], Any]) -> list[str] | ExportReport:
        """Write `model` to `path`, beside it first and then renamed into place.

        Args:
            model: what to write.
            path: the file (or folder) to write or replace.
            build_module: returns the user's `torch.nn.Module`, freshly built, for formats that carry a graph.

        Returns:
            Notes for the user, a line each, or a report with more.

        Raises:
            ExportError: the model holds something that the format cannot carry.
        """
        ...

    def float32_size(self, model: QuantizedModel, *, build_module: Callable[[], Any]) -> int:
        """Return the bytes that the float32 model takes, exported the same way."""
        ...


@dataclass(frozen=True)
class Exported:
    """A written file, or folder of files.

    Attributes:
        path: where it is.
        size_bytes: its size; of a folder, that of its files.
        float32_bytes: the size of the float32 model exported the same way.
        report: what the exporter has to say.
    """

    path: Path
    size_bytes: int
    float32_bytes: int
    report: ExportReport

    @property
    def notes(self) -> list[str]:
        """What the exporter has to say, a line each."""
        return self.report.notes


EXPORTERS = Registry("csqtool.exporters", "format")


def load_exporter(name: str, options: Mapping[str, Any] | None = None) -> Exporter:
    """Return an exporter.

    Args:
        name: the format.
        options: the format's own options, by name.

    Raises:
        ConfigError: no such format is installed, it has no such option, or a value is wrong.
    """
    kind = EXPORTERS.load(name)
    exporter: Exporter = kind(_parse_options(kind, name, options)) if options else kind()
    return exporter


def _parse_options(kind: Any, name: str, options: Mapping[str, Any]) -> Any:
    if not hasattr(kind, "Options"):
        raise ConfigError(f"the format {name} takes no options, got {', '.join(map(repr, options))}")
    known = [f.name for f in dataclasses.fields(kind.Options)]
    for key in options:
        if key not in known:
            raise ConfigError(f"unknown option {key!r} of the format {name}; {nearest(key, known)}")
    return kind.Options(**options)


def export(
    source: Path,
    output: Path,
    *,
    format: str,  # noqa: A002 - the verb's word
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Exported:
    """Write a finalized model in a deployable format.

    Args:
        source: the finalized ``.safetensors`` file.
        output: the file to write.
        format: a format's name, such as ``onnx`` or ``csq``.
        model: factory of the PyTorch module, instead of the one recorded in the finalized model.
        options: the format's own options, such as ``{"weights": "int8"}`` for ``onnx``.

    Raises:
        InputError: the source is no finalized model, the format or an option is unknown, or the output cannot be
            written.
        CheckFailed: the file would not hold a condition that an option sets; nothing is written.
    """
    exporter = load_exporter(format, options)
    # The formats that promise the finalized file bit for bit.
    finalized = (read_exact if format in ("csq", "c") else read_finalized)(source)
    build_module = module_builder(finalized, model, source)
    report = exporter.export(finalized, output, build_module=build_module)
    return exported(exporter, finalized, output, build_module, report)


def module_builder(finalized: QuantizedModel, factory: str | None, near: Path) -> Callable[[], Any]:
    """Return what exporters call to build the user's module; `near` is the finalized file."""

    def build_module() -> Any:
        from csqtool.rebuild import rebuilt_module

        return rebuilt_module(finalized, factory=factory, near=near)

    return build_module


def exported(
    exporter: Exporter,
    finalized: QuantizedModel,
    output: Path,
    build_module: Callable[[], Any],
    report: list[str] | ExportReport,
) -> Exported:
    """Return the facts about what an exporter wrote, one file or a folder of files."""
    files = [output] if output.is_file() else sorted(output.iterdir())
    float32_bytes = exporter.float32_size(finalized, build_module=build_module)
    report = report if isinstance(report, ExportReport) else ExportReport(report)
    return Exported(output, sum(file.stat().st_size for file in files), float32_bytes, report)
