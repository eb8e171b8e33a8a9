"""Layers whose input is in float32, and embeddings: docs/c-inference.md, section 5.3."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray

from exporters.c.float_steps import FloatValue
from exporters.c.graph import Graph, refusal
from exporters.c.layers import bias_of, filters_of, weight_of
from exporters.c.program import Conv, Window
from exporters.c.values import Values


@dataclass
class FloatConv(Conv):
    """A layer whose input is in float: sums times `steps` plus `offsets`.

    Attributes:
        offsets: float32 [channels].
        distances: how far apart channels and positions of the input are, then those of the output, in floats.
    """

    offsets: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    distances: tuple[int, int, int, int] = (1, 1, 1, 1)

    @property
    def scratch_bytes(self) -> int:
        """Room for a window in float and the decoded filters."""
        return 4 * self.padded + self.block * self.filter_bytes


@dataclass
class Embedding(Conv):
    """Rows of a table by their number, times `scale`; its filters are the rows.

    Attributes:
        scale: of all rows.
    """

    scale: np.float32 = field(default_factory=lambda: np.float32(1))

    @property
    def most_filters(self) -> int:
        """One row is decoded at a time."""
        return 1

    @property
    def scratch_bytes(self) -> int:
        """Room for a row."""
        return self.filter_bytes


def layer_of_floats(values: Values, node: onnx.NodeProto, bias: str, source: FloatValue, output: FloatValue) -> None:
    """Add a layer.

    Args:
        values: is added to.
        node: the product, from `exporters.c.layers.layer_ending_at`.
        bias: the name of its bias.
        source: its input.
        output: its result.

    Raises:
        ExportError: this form of it is not covered.
    """
    filters = filters_of(values.graph, node, source.shape)
    channels = len(filters.q)
    offsets = bias_of(values.graph, bias) if bias else np.zeros(channels)
    if offsets is None or offsets.size != channels:
        raise refusal(node, "its bias is no constant")
    distances = (1, source.elements // prod(filters.window.in_size), 1, channels)
    if filters.is_spatial:
        distances = (prod(filters.window.in_size), 1, prod(filters.window.out_size), 1)
    values.steps.append(FloatConv(
        (source,), output, layer=node.input[1].removesuffix("_dq"), window=filters.window, q=filters.q,
        groups=filters.groups, steps=filters.scales.astype(np.float32), offsets=offsets.reshape(-1).astype(np.float32),
        distances=distances,
    ))  # fmt: skip


def is_embedding(graph: Graph, node: onnx.NodeProto) -> bool:
    """Tell whether a node takes rows of a quantized weight."""
    return node.op_type == "Gather" and weight_of(graph, node.input[0]) is not None


def embedding(values: Values, node: onnx.NodeProto, numbers: FloatValue, output: FloatValue) -> None:
    """Add the rows of a quantized weight that an input names; arguments and errors as for `layer_of_floats`."""
    stored = weight_of(values.graph, node.input[0])
    assert stored is not None
    q, scale = stored
    if values.graph.attributes(node).get("axis", 0) != 0 or q.ndim != 2 or scale.size != 1:
        raise refusal(node, "its rows do not share one scale")
    row = Window((1, numbers.elements), (1, numbers.elements), (1, 1), (1, 1), (0, 0))
    values.steps.append(Embedding(
        (numbers,), output, layer=node.input[0].removesuffix("_dq"), window=row, q=q[:, None, None, :],
        scale=np.float32(scale.reshape(-1)[0]),
    ))  # fmt: skip
