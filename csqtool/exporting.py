"""Deployable formats: the protocol of an exporter, the registry, and the verb `export`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from csqtool.errors import ConfigError, nearest
from csqtool.finalized_file import read_exact, read_finalized
from csqtool.quantized_model import QuantizedModel
from csqtool.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from csqtool.data import DataSource


@dataclass(frozen=True)
class FloatNode:
    """A node that computes in float: its name, its operator and the reason."""

    name: str
    operator: str
    reason: str


@dataclass(frozen=True)
class ExportReport:
    """What an exporter reports about the file it wrote.

    Attributes:
        float32_bytes: the size of the float32 model exported the same way.
        notes: a line each.
        kernels: the target runtime's kernels, operator to count; empty if they are not known.
        float_nodes: the compute nodes that run in float.
        storage: how each layer's integers are stored, by layer.
    """

    float32_bytes: int
    notes: list[str] = field(default_factory=list)
    kernels: Mapping[str, int] = field(default_factory=dict)
    float_nodes: list[FloatNode] = field(default_factory=list)
    storage: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """Where an exporter finds the user's module and data, which a model does not contain.

    Attributes:
        path: the finalized file, if there is one; its folders are searched for the factory's source and the data.
        factory: the factory of the module, or the module itself, which is copied; None takes the recorded factory.
        data: test data for exporters that measure; None takes the recorded ones.
    """

    path: Path | None = None
    factory: str | nn.Module | None = None
    data: str | DataSource | None = None

    def build_module(self, model: QuantizedModel) -> Any:
        """Return the user's `torch.nn.Module`, freshly built, for formats that carry a graph.

        Raises:
            InputError: the factory is missing, or does not build a module.
        """
        from csqtool.rebuild import rebuilt_module

        return rebuilt_module(model, factory=self.factory, near=self.path)


class Exporter(Protocol):
    """Writes a `QuantizedModel` in one format; also the base class of exporters, with defaults.

    Register the class under the entry point group ``csqtool.exporters``. docs/architecture.md has an example.

    Attributes:
        name: the name for ``--format``.
        suffix: the suffix of its files; empty for a folder.
        description: one line for ``csqtool formats``.
        exact: whether the finalized file can be restored from the written file bit for bit. Such a format refuses a
            finalized file that csqtool would write with other bytes.
        Options: a frozen dataclass whose fields are the format's options, or None. The exporter is then constructed
            with an instance; a value that is not allowed raises a `ConfigError` that names the option. A field's
            metadata are ``help`` and, if it has a value, ``metavar`` for the command line.
    """

    name: str
    suffix: str
    description: str
    exact: ClassVar[bool] = False
    Options: ClassVar[Any] = None

    @property
    def measures(self) -> bool:
        """Whether the export runs the network on data."""
        return False

    def export(self, model: QuantizedModel, path: Path, *, origin: Origin) -> ExportReport:
        """Write `model` to a temporary file beside `path`, and rename that to `path`.

        Args:
            model: the finalized model.
            path: the file (or folder) to write or replace.
            origin: where the model comes from.

        Raises:
            ExportError: the format cannot represent the model.
        """
        ...


@dataclass(frozen=True)
class Exported:
    """A written file, or folder of files.

    Attributes:
        path: the file or folder.
        size_bytes: its size; of a folder, the sum of its files.
        report: what the exporter reports.
    """

    path: Path
    size_bytes: int
    report: ExportReport

    @property
    def float32_bytes(self) -> int:
        """The size of the float32 model exported the same way."""
        return self.report.float32_bytes

    @property
    def notes(self) -> list[str]:
        """The exporter's notes, a line each."""
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


def format_of(output: Path) -> str:
    """Return the format whose files have the suffix of `output`.

    Raises:
        ConfigError: there is none; the message lists the suffixes.
    """
    suffixes = {EXPORTERS.load(name).suffix: name for name in EXPORTERS.names()}
    found = max((suffix for suffix in suffixes if suffix and output.name.endswith(suffix)), key=len, default=None)
    if found is None:
        known = ", ".join(f"{suffix} ({name})" for suffix, name in suffixes.items() if suffix)
        raise ConfigError(f"{output}: no format writes files that end so; give format=, or end in one of {known}")
    return suffixes[found]


def _parse_options(kind: Any, name: str, options: Mapping[str, Any]) -> Any:
    if kind.Options is None:
        raise ConfigError(f"the format {name} takes no options, got {', '.join(map(repr, options))}")
    known = [f.name for f in dataclasses.fields(kind.Options)]
    for key in options:
        if key not in known:
            raise ConfigError(f"unknown option {key!r} of the format {name}; {nearest(key, known)}")
    return kind.Options(**options)


def export(
    source: QuantizedModel | Path,
    output: Path,
    *,
    format: str,  # noqa: A002 - the verb's word
    model: str | nn.Module | None = None,
    data: str | DataSource | None = None,
    options: Mapping[str, Any] | None = None,
) -> Exported:
    """Write a finalized model in a deployable format.

    Args:
        source: the finalized model, or its ``.safetensors`` file.
        output: the file to write.
        format: a format's name, such as ``onnx`` or ``csq``.
        model: the PyTorch module or its factory, instead of the one recorded in the finalized model.
        data: test data that the export measures on, instead of the recorded ones.
        options: the format's own options, such as ``{"weights": "int8"}`` for ``onnx``.

    Raises:
        InputError: the source is no finalized model, the format or an option is unknown, or the output cannot be
            written.
        CheckFailed: the file would not hold a condition that an option sets; nothing is written.
    """
    exporter = load_exporter(format, options)
    if data is not None and not exporter.measures:
        raise ConfigError("--data is only used by exports that measure: --float16 of the format csq")
    if isinstance(source, QuantizedModel):
        finalized, origin = source, Origin(None, model, data)
    else:
        finalized = (read_exact if exporter.exact else read_finalized)(source)
        origin = Origin(source, model, data)
    report = exporter.export(finalized, output, origin=origin)
    files = [output] if output.is_file() else sorted(output.iterdir())
    size_bytes = sum(file.stat().st_size for file in files)
    return Exported(output, size_bytes, report)
