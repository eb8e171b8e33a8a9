"""Running ONNX files over a data set, in batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

OPTIMIZATIONS = ("off", "basic", "extended", "on")  # on: the default, everything
BATCH = 250


def run_batches(
    loaded: Any, feeds: Mapping[str, NDArray[Any]], sizes: Sequence[int] | None = None
) -> dict[str, NDArray[Any]]:
    """Run a session over the first axis of `feeds`, in batches, and return its outputs by name.

    Args:
        loaded: the session.
        feeds: inputs by name, [N, …].
        sizes: samples of each batch, N in all; None takes batches of `BATCH`.

    Raises:
        RuntimeError: onnxruntime failed; the message is its own.
    """
    names = [output.name for output in loaded.get_outputs()]
    count = len(next(iter(feeds.values())))
    parts: list[dict[str, NDArray[Any]]] = []
    start = 0
    for size in sizes or [BATCH] * -(-count // BATCH):
        parts.append(run_once(loaded, {name: array[start : start + size] for name, array in feeds.items()}))
        start += size
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
