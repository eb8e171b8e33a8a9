"""Running ONNX files over a data set, in batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

OPTIMIZATIONS = ("off", "basic", "extended", "on")  # on: the default, everything
BATCH = 250
BATCH_BYTES = 1 << 25  # of inputs; the values inside a network take many times as much


def batch_size(sample_bytes: float) -> int:
    """Return how many samples are run at a time, so that memory does not grow with the size of an input."""
    return max(1, min(BATCH, int(BATCH_BYTES / max(sample_bytes, 1))))


def run_batches(
    loaded: Any, feeds: Mapping[str, NDArray[Any]], sizes: Sequence[int] | None = None
) -> dict[str, NDArray[Any]]:
    """Run a session over the first axis of `feeds`, in batches, and return its outputs by name.

    Args:
        loaded: the session.
        feeds: inputs by name, [N, …].
        sizes: samples of each batch, N in all; None takes what `batch_size` allows.

    Raises:
        RuntimeError: onnxruntime failed; the message is its own.
    """
    names = [output.name for output in loaded.get_outputs()]
    count = len(next(iter(feeds.values())))
    parts: list[dict[str, NDArray[Any]]] = []
    start = 0
    size = batch_size(sum(array.nbytes for array in feeds.values()) / max(count, 1))
    for length in sizes or [size] * -(-count // size):
        parts.append(run_once(loaded, {name: array[start : start + length] for name, array in feeds.items()}))
        start += length
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
