"""Geometry of convolutions and poolings, read from ONNX's attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from exporters.c.graph import refusal
from exporters.c.program import Window


def window_of(
    node: onnx.NodeProto,
    attributes: Mapping[str, Any],
    kernel: Sequence[int],
    in_size: Sequence[int],
    out_size: Sequence[int],
) -> Window:
    """Return a node's window; one dimension becomes two with a height of 1.

    Args:
        node: a convolution or pooling.
        attributes: its attributes.
        kernel: sizes of its window.
        in_size: sizes of its input, without channels.
        out_size: sizes of its output, without channels.

    Raises:
        ExportError: it has other than one or two dimensions, or its padding is not stated.
    """
    count = len(kernel)
    if count not in (1, 2):
        raise refusal(node, f"it has {count} dimensions, not 1 or 2")
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise refusal(node, "its padding is automatic")

    def two(values: Sequence[int], missing: int) -> tuple[int, int]:
        return (missing, int(values[0])) if count == 1 else (int(values[0]), int(values[1]))

    ones = [1] * count
    return Window(
        two(in_size, 1), two(out_size, 1), two(kernel, 1), two(attributes.get("strides", ones), 1),
        two(attributes.get("pads", [0] * 2 * count)[:count], 0), two(attributes.get("dilations", ones), 1),
    )  # fmt: skip
