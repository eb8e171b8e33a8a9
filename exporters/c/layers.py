"""Convolutions and linear layers: integers, biases and factors from the graph."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from csqtool.folding import bias_step, integer_bias
from exporters.c.fixed_point import channel_factors, float_factors
from exporters.c.float_steps import FloatValue
from exporters.c.graph import Graph, refusal
from exporters.c.program import Conv, Grid, Value, Window
from exporters.c.values import Values, channels_last, plain
from exporters.c.windows import window_of

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
LIMIT = 2**31 - 1
LARGEST = 255  # of an activation's integers
# How far a bias in float32 may be from a whole number of steps: some of its own rounding, and of theirs.
OFF_STEP, OFF_SHARE = 1e-3, 2.0**-22


def layer_ending_at(graph: Graph, node: onnx.NodeProto) -> tuple[onnx.NodeProto, str] | None:
    """Return the product and the name of its bias, if `node` is the end of a layer with a quantized weight."""
    if node.op_type == "Add":
        for one, other in (tuple(node.input), tuple(reversed(node.input))):
            maker, bias = graph.makers.get(one), bias_of(graph, other)
            if maker is not None and maker.op_type == "MatMul" and bias is not None and bias.ndim == 1:
                return None if layer_ending_at(graph, maker) is None else (maker, other)
        return None
    if node.op_type not in PRODUCTS or weight_of(graph, node.input[1]) is None:
        return None
    return node, node.input[2] if len(node.input) > 2 else ""


def quantized_layer(values: Values, node: onnx.NodeProto, bias: str, source: Value, grid: Grid) -> Value:
    """Add a layer whose result is rounded to a grid.

    Args:
        values: is added to.
        node: the product, from `layer_ending_at`.
        bias: the name of its bias.
        source: its input.
        grid: the result's.

    Raises:
        ExportError: this form of it is not covered, or its numbers do not fit in 32 bits.
    """
    step, scales = _layer(values, node, bias, source)
    ratios = [float(source.grid.scale) * float(s) / float(grid.scale) for s in scales]
    try:
        if values.in_float:
            step.steps = float_factors(ratios)
        else:
            factors = channel_factors(ratios)
            step.factors = factors[:1] if len(set(factors)) == 1 else factors
    except OverflowError as error:
        raise refusal(node, "its scales are too far apart") from error
    shape = values.graph.shape(node, node.output[0])
    is_spatial = node.op_type in ("Conv", "ConvTranspose")
    step.output = values.new(shape, channels_last(len(shape)) if is_spatial else plain(len(shape)), grid)
    return values.add(step)


def float_layer(
    values: Values, node: onnx.NodeProto, bias: str, source: Value, output: FloatValue | None = None
) -> None:
    """Add a layer whose result is a value in float or, without one, the program's output.

    The other arguments are those of `quantized_layer`.
    """
    step, scales = _layer(values, node, bias, source)
    step.output = output
    step.steps = (np.float32(source.grid.scale) * scales).astype(np.float32)
    values.steps.append(step)


def weight_of(graph: Graph, name: str) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Return integers and scales of a quantized constant."""
    node = graph.makers.get(name)
    if node is None or node.op_type != "DequantizeLinear":
        return None
    q, scale = graph.constant(node.input[0]), graph.constant(node.input[1])
    return None if q is None or scale is None else (q, scale)


def bias_of(graph: Graph, name: str) -> NDArray[np.float64] | None:
    """Return a bias in float, from float or from integers and their steps."""
    stored = weight_of(graph, name)
    if stored is not None:
        return np.asarray(stored[0].astype(np.float64) * stored[1])
    found = graph.constant(name)
    return None if found is None else found.astype(np.float64)


def has_integer_bias(graph: Graph, node: onnx.NodeProto, bias: str, source: Value) -> bool:
    """Tell whether a layer's bias is a whole number of its sums' steps in every channel.

    PyTorch adds a bias in float. Finalizing rounds it to these steps, but for a layer that runs more than once and for
    the projections of an attention: they have no input quantizer of their own.
    """
    found, stored = bias_of(graph, bias) if bias else None, weight_of(graph, node.input[1])
    if found is None or stored is None or np.size(stored[1]) not in (1, found.size):
        return True  # none, or one that is refused later
    steps = found.reshape(-1) / bias_step(source.grid.scale, stored[1].reshape(-1)).astype(np.float64)
    return bool((np.abs(steps - np.rint(steps)) <= OFF_STEP + np.abs(steps) * OFF_SHARE).all())


@dataclass
class Filters:
    """A layer's weights and geometry.

    Attributes:
        q: integers [channels, kernel height, kernel width, channels of a group].
        scales: of each channel.
        window: geometry.
        groups: as in PyTorch.
        is_spatial: whether it is a convolution.
    """

    q: NDArray[Any]
    scales: NDArray[np.float32]
    window: Window
    groups: int
    is_spatial: bool


def filters_of(graph: Graph, node: onnx.NodeProto, sizes: tuple[int, ...]) -> Filters:
    """Return weights and geometry of a layer from `layer_ending_at` whose input has `sizes`.

    Raises:
        ExportError: this form of it is not covered.
    """
    stored = weight_of(graph, node.input[1])
    assert stored is not None
    q, scale = stored
    attributes = graph.attributes(node)
    groups = int(attributes.get("group", 1))
    is_spatial = node.op_type in ("Conv", "ConvTranspose")
    if is_spatial:
        shape = graph.shape(node, node.output[0])
        window = window_of(node, attributes, q.shape[2:], sizes[1:], shape[1:])
        q = q.reshape(*q.shape[:2], *window.kernel)
        if node.op_type == "ConvTranspose":
            q, window = _gathering(q, window, groups)
        q = q.transpose(0, 2, 3, 1)
    else:
        if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0 or attributes.get("transA", 0):
            raise refusal(node, "it scales its terms or transposes its input")
        if q.ndim != 2:
            raise refusal(node, "its weight is no matrix")
        q = q if attributes.get("transB", 0) else q.T
        positions = prod(sizes) // q.shape[1]
        window = window_of(node, {}, [1, 1], [1, positions], [1, positions])
        q = q[:, None, None, :]
    scales = np.broadcast_to(scale.astype(np.float32).reshape(-1), (len(q),))
    return Filters(np.ascontiguousarray(q), scales, window, groups, is_spatial)


def _layer(values: Values, node: onnx.NodeProto, bias_name: str, source: Value) -> tuple[Conv, NDArray[np.float32]]:
    """Return a layer without its result, and its channels' scales."""
    graph = values.graph
    is_spatial = node.op_type in ("Conv", "ConvTranspose")
    source = values.ordered(source, (channels_last if is_spatial else plain)(len(source.shape)))
    filters = filters_of(graph, node, source.shape)
    q, scales, channels = filters.q, filters.scales, len(filters.q)
    bias = np.zeros(channels, np.int64)
    if bias_name:
        found = bias_of(graph, bias_name)
        if found is None or found.size != channels:
            raise refusal(node, "its bias is no constant")
        integers = integer_bias(found.reshape(-1), bias_step(source.grid.scale, scales))
        if integers is None:
            raise refusal(node, "its bias does not fit in 32 bits")
        bias = integers.astype(np.int64)
    # What is summed, the zero point's share that is part of the bias, and the two rows of integers of nine bits.
    most = np.abs(bias) + 2 * LARGEST * (np.abs(q.astype(np.int64)) + 1).sum(axis=(1, 2, 3))
    if most.max(initial=0) > LIMIT:
        raise refusal(node, "its sums may exceed 32 bits")
    step = Conv(
        (source,), None, layer=node.input[1].removesuffix("_dq"), window=filters.window, q=q, bias=bias,
        groups=filters.groups, channels_first=is_spatial,
    )  # fmt: skip
    return step, scales


def _gathering(q: NDArray[Any], window: Window, groups: int) -> tuple[NDArray[Any], Window]:
    """Return a transposed convolution as one of the input with stride − 1 zeros between neighbours.

    Args:
        q: integers [input channels, output channels of a group, height, width].
        window: its geometry.
        groups: as in PyTorch.
    """
    by_group = q.reshape(groups, -1, *q.shape[1:])  # (groups, inputs of a group, outputs of a group, kh, kw)
    turned = by_group.swapaxes(1, 2).reshape(-1, by_group.shape[1], *q.shape[2:])[:, :, ::-1, ::-1]
    pad = [d * (k - 1) - p for d, k, p in zip(window.dilation, window.kernel, window.pad, strict=True)]
    return turned, Window(
        window.in_size, window.out_size, window.kernel, (1, 1), (pad[0], pad[1]), window.dilation, window.stride
    )
