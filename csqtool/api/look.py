"""The verbs that show: `inspect`, `report`, `methods`, `formats`, `doctor`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csqtool.api.given import PathLike

if TYPE_CHECKING:
    from csqtool.installation import Finding


def inspect(path: PathLike) -> dict[str, Any]:
    """Explain a file or run directory that csqtool writes, as a JSON document.

    Raises:
        InputError: the file is missing, damaged, or of a kind that csqtool does not write.
    """
    from csqtool.inspecting import inspect as explain

    return explain(Path(path))[1]


def report(sources: PathLike | Iterable[PathLike], output: PathLike, *, bench: bool = False) -> Path:
    """Write a self-contained HTML page about runs and files.

    Args:
        sources: run directories, outputs of pipelines, pipeline files, finalized models, ``.csq`` and ``.onnx``
            files, and what ``verify --json`` and ``bench --json`` wrote.
        output: the ``.html`` file to write.
        bench: also measure the latency of the ONNX files among them.

    Raises:
        InputError: a source is missing, damaged or of another kind, or `output` cannot be written.
    """
    from csqtool.reporting import report as write

    paths = [sources] if isinstance(sources, str | Path) else list(sources)
    return write([Path(path) for path in paths], Path(output), bench=bench)


def methods() -> dict[str, dict[str, Any]]:
    """Return the installed search methods by name, each with its ``description`` and the names of its ``options``."""
    from csqtool.searching.declarations import declared
    from csqtool.searching.options import METHODS, method_kind

    return {
        name: {"description": text, "options": list(declared(method_kind(name).options))}
        for name, text in METHODS.descriptions().items()
    }


def formats() -> dict[str, str]:
    """Return the installed export formats by name, each with a one-line description."""
    from csqtool.exporting import EXPORTERS

    return EXPORTERS.descriptions()


def doctor() -> list[Finding]:
    """Return what is installed, and what is missing for which feature: packages, extras, compilers, devices."""
    from csqtool.installation import examine

    return examine()
