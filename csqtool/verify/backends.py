"""What runs an ONNX file in a verification; others register under the entry point ``csqtool.backends``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from csqtool.errors import ConfigError, nearest
from csqtool.onnx_session import session
from csqtool.verify import runtime


class Backend(Protocol):
    """Runs ONNX files.

    Attributes:
        name: what it is called in reports.
        levels: in which ways it runs a file; results of all are compared.
        most_samples: how many samples it is asked to compute, None all.
    """

    name: str
    levels: tuple[str, ...]
    most_samples: int | None

    def run(self, content: bytes, level: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return a file's outputs by name.

        Raises:
            RuntimeError: it cannot load or run the file.
        """
        ...


class OnnxRuntime:
    """onnxruntime on the CPU, at each of its optimization levels; loading at the default one is a check itself."""

    name = "onnxruntime"
    levels = runtime.OPTIMIZATIONS
    most_samples = None

    def run(self, content: bytes, level: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return a file's outputs by name."""
        return runtime.run_batches(session(content, level), feeds)


class Reference:
    """onnx's reference evaluator: plain numpy, slow, and of no runtime's making."""

    name = "reference"
    levels = ("off",)
    most_samples = 32

    def run(self, content: bytes, level: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return a file's outputs by name."""
        import onnx
        from onnx.reference import ReferenceEvaluator

        proto = onnx.load_from_string(content)
        try:
            outputs = ReferenceEvaluator(proto).run(None, dict(feeds))
        except Exception as error:  # whatever an operator's implementation stumbles over
            raise RuntimeError(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}") from error
        names = [output.name for output in proto.graph.output]
        return dict(zip(names, (np.asarray(output) for output in outputs), strict=True))


def load_backends(names: Sequence[str]) -> list[Backend]:
    """Return the backends of these names, each once.

    Raises:
        ConfigError: a backend is not installed: it is not skipped.
    """
    known = {entry.name: entry for entry in entry_points(group="csqtool.backends")}
    found: list[Backend] = []
    for name in dict.fromkeys(names):
        if name not in known:
            raise ConfigError(f"unknown backend {name!r}; {nearest(name, known)}")
        found.append(known[name].load()())
    return found
