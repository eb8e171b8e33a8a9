"""Running ONNX files over a data set, in batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

OPTIMIZATIONS = ("off", "basic", "extended", "on")  # on: the default, everything
BATCH = 250


def run_batches(loaded: Any, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Run a session over the first axis of `feeds`, in batches, and return its outputs by name.

    Raises:
        RuntimeError: onnxruntime failed; the message is its own.
    """
    names = [output.name for output in loaded.get_outputs()]
    count = len(next(iter(feeds.values())))
    parts: list[dict[str, NDArray[Any]]] = []
    for start in range(0, count, BATCH):
        parts.append(run_once(loaded, {name: array[start : start + BATCH] for name, array in feeds.items()}))
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def run_once(loaded: Any, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Run a session once, and return its outputs by name; the first axes of `feeds` may differ in length.

    Raises:
        RuntimeError: onnxruntime failed; the message is its own.
    """
    names = [output.name for output in loaded.get_outputs()]
    try:
        return dict(zip(names, loaded.run(names, dict(feeds)), strict=True))
    except Exception as error:  # onnxruntime's errors have no common class
        raise RuntimeError(str(error).strip().splitlines()[0]) from error
