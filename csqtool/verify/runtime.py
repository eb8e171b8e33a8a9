"""Running ONNX files in onnxruntime, with and without graph optimizations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

OPTIMIZATIONS = ("off", "on")
BATCH = 250


def session(content: bytes, optimization: str, *, optimized_path: str | None = None) -> Any:
    """Return an onnxruntime session on the CPU.

    Args:
        content: the ONNX file.
        optimization: ``off``, or ``on``: everything that is on by default.
        optimized_path: where to write the optimized graph.

    Raises:
        RuntimeError: onnxruntime cannot load the file; the message is its own.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimization == "on" else level.ORT_DISABLE_ALL
    if optimized_path is not None:
        options.optimized_model_filepath = optimized_path
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class an error kind, all directly below Exception
        raise RuntimeError(str(error).strip().splitlines()[0]) from error


def run_batches(loaded: Any, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Run a session over the first axis of `feeds`, in batches, and return its outputs by name.

    Raises:
        RuntimeError: onnxruntime failed; the message is its own.
    """
    names = [output.name for output in loaded.get_outputs()]
    count = len(next(iter(feeds.values())))
    parts: list[list[NDArray[Any]]] = []
    for start in range(0, count, BATCH):
        batch = {name: array[start : start + BATCH] for name, array in feeds.items()}
        try:
            parts.append(loaded.run(names, batch))
        except Exception as error:  # as above
            raise RuntimeError(str(error).strip().splitlines()[0]) from error
    return {name: np.concatenate(column) for name, column in zip(names, zip(*parts, strict=True), strict=True)}


def optimized_operators(content: bytes) -> list[str]:
    """Return the operators that onnxruntime really runs, in order: the optimized graph's nodes."""
    import tempfile
    from pathlib import Path

    import onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        session(content, "on", optimized_path=str(path))
        return [node.op_type for node in onnx.load(path).graph.node]
