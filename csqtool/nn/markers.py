"""Export markers: while a graph is captured, quantized values appear in it as nodes of their own.

Each marker node carries the name of a layer or an activation quantizer. An exporter replaces it by the integers
and scales that the finalized model has under that name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

MARKER_DOMAIN = "csqtool.marker"
_markers_on = False


def markers_on() -> bool:
    """Return whether a graph is being captured now."""
    return _markers_on


@contextmanager
def graph_markers() -> Iterator[None]:
    """Capture a graph: inside, finalized weights and activation quantizers return marker nodes."""
    global _markers_on  # noqa: PLW0603 - capture runs in one thread, and modules called by torch take no argument
    _markers_on = True
    try:
        yield
    finally:
        _markers_on = False


def marker(kind: str, inputs: tuple[Tensor, ...], shape: torch.Size, *, name: str) -> Tensor:
    """Return the output of a marker node (`torch.onnx.ops.symbolic`).

    Args:
        kind: the node's operator, ``Weight`` or ``Activation``.
        inputs: the tensors that the node reads.
        shape: shape of the output, float32.
        name: the layer's or quantizer's name, an attribute of the node.
    """
    result: Tensor = torch.onnx.ops.symbolic(
        f"{MARKER_DOMAIN}::{kind}", inputs, attrs={"name": name}, dtype=torch.float32, shape=shape, version=1
    )
    return result
