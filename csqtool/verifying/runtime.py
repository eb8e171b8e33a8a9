"""Running ONNX files over a data set, in batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

OPTIMIZATIONS = ("off", "basic", "extended", "on")  # on: the default, everything
BATCH = 250
BATCH_BYTES = 1 << 25  # of inputs; the values inside a network take many times as much


def batch_size(sample_bytes: float) -> int:
    """Return how many samples are run at a time, so that memory does not grow with the size of an input."""
    return max(1, min(BATCH, int(BATCH_BYTES / max(sample_bytes, 1))))


def run_batches(loaded: Any, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Run a session over the first axis of `feeds`, in batches, and return its outputs by name.

    Raises:
        RuntimeError: onnxruntime failed; the message is its own.
    """
    names = [output.name for output in loaded.get_outputs()]
    count = len(next(iter(feeds.values())))
    parts: list[list[NDArray[Any]]] = []
    size = batch_size(sum(array.nbytes for array in feeds.values()) / max(count, 1))
    for start in range(0, count, size):
        batch = {name: array[start : start + size] for name, array in feeds.items()}
        try:
            parts.append(loaded.run(names, batch))
        except Exception as error:  # as above
            raise RuntimeError(str(error).strip().splitlines()[0]) from error
    return {name: np.concatenate(column) for name, column in zip(names, zip(*parts, strict=True), strict=True)}
