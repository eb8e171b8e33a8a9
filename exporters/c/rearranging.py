"""Nodes that keep the grid of a quantized value: views, parts, padding, repetition, the largest of a window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray

from exporters.c.float_steps import FloatStep
from exporters.c.graph import Graph, refusal
from exporters.c.program import MaxPool, Take, Upsample, Value
from exporters.c.values import Values, channels_last, plain
from exporters.c.windows import window_of

AROUND = (b"reflect", b"edge", b"wrap")  # how padding repeats a value, in the order of the kernel's words
VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout")
REARRANGING = (*VIEWS, "MaxPool", "Slice", "Split", "Pad", "Resize")


def keeps_grid(values: Values, node: onnx.NodeProto) -> bool:
    """Tell whether what a node of `REARRANGING` returns lies on its input's grid: not if it adds other than zeros."""
    if node.op_type == "Resize":
        return bool(values.graph.attributes(node).get("mode", b"nearest") == b"nearest")
    if values.graph.attributes(node).get("mode", b"constant") in AROUND:
        return True
    return node.op_type != "Pad" or len(node.input) < 3 or values.graph.number(node.input[2]) in (None, 0.0)


def rearranged(values: Values, node: onnx.NodeProto, name: str, source: Value) -> Value:
    """Return an output of a node in `REARRANGING`.

    Args:
        values: is added to.
        node: the node.
        name: which of its outputs.
        source: its input.

    Raises:
        ExportError: this form of it is not covered.
    """
    if node.op_type in VIEWS:
        return view(values, node, source)
    if node.op_type == "MaxPool":
        return max_pool(values, node, source)
    if node.op_type == "Resize":
        return _upsampled(values, node, source)
    if node.op_type == "Pad":
        return _padded(values, node, source)
    return _split(values, node, name, source) if node.op_type == "Split" else _sliced(values, node, source)


def view(values: Values, node: onnx.NodeProto, source: Value) -> Value:
    """Return a value with other sizes or another order of axes."""
    shape = values.graph.shape(node, node.output[0])
    if node.op_type == "Transpose":
        permutation = values.graph.attributes(node)["perm"]
        if permutation[0] != 0:
            raise refusal(node, "it moves the batch")
        axes = [axis - 1 for axis in permutation[1:]]
        return Value(source.buffer, shape, tuple(axes.index(axis) for axis in source.order), source.grid)
    if shape == source.shape:
        return source
    if prod(shape) != source.elements:
        raise refusal(node, "it merges samples")
    in_order = values.ordered(source, plain(len(source.shape)))
    return Value(in_order.buffer, shape, plain(len(shape)), source.grid)


def max_pool(values: Values, node: onnx.NodeProto, source: Value) -> Value:
    """Return the largest integers of windows."""
    attributes = values.graph.attributes(node)
    source = values.ordered(source, channels_last(len(source.shape)))
    shape = values.graph.shape(node, node.output[0])
    window = window_of(node, attributes, attributes["kernel_shape"], source.shape[1:], shape[1:])
    return values.add(MaxPool((source,), values.new(shape, source.order, source.grid), window=window))


def _upsampled(values: Values, node: onnx.NodeProto, source: Value) -> Value:
    attributes = values.graph.attributes(node)
    shape = values.graph.shape(node, node.output[0])
    factors = [b // a for a, b in zip(source.shape, shape, strict=True)]
    exact = all(a * f == b for a, b, f in zip(source.shape, shape, factors, strict=True))
    if attributes.get("mode", b"nearest") != b"nearest" or not exact or factors[0] != 1 or len(shape) not in (2, 3):
        raise refusal(node, "only repeating each value a whole number of times is covered")
    source = values.ordered(source, channels_last(len(shape)))
    two = (1, factors[1]) if len(shape) == 2 else (factors[1], factors[2])
    return values.add(Upsample((source,), values.new(shape, source.order, source.grid), factors=two))


def _taken(
    values: Values,
    node: onnx.NodeProto,
    name: str,
    source: Value,
    starts: Mapping[int, int],
    strides: Mapping[int, int],
) -> Value:
    """Return what begins at `starts` and goes in steps of `strides`, by axis of a sample."""
    shape = values.graph.shape(node, name)
    if len(shape) > 4:
        raise refusal(node, "it has more than four axes beside the batch")
    output = values.new(shape, source.order, source.grid)
    return values.add(Take(
        (source,), output, axes=plain(len(shape)), starts=tuple(starts.get(axis, 0) for axis in source.order),
        strides=tuple(strides.get(axis, 1) for axis in source.order),
    ))  # fmt: skip


def starts_of_slice(
    values: Values, node: onnx.NodeProto, shape: tuple[int, ...]
) -> tuple[dict[int, int], dict[int, int]]:
    """Return where a Slice begins and how far it steps, by axis of a sample.

    Args:
        values: of the graph.
        node: the Slice.
        shape: of its input, without the batch.

    Raises:
        ExportError: it depends on values, takes part of the batch, or goes backwards.
    """
    rank = len(shape)
    parts = [values.graph.constant(name) if name else None for name in node.input[1:]]
    if len(parts) < 2 or parts[0] is None or parts[1] is None:
        raise refusal(node, "where it begins depends on values")
    count = parts[0].size
    axes = parts[2] if len(parts) > 2 and parts[2] is not None else np.arange(count)
    steps = parts[3] if len(parts) > 3 and parts[3] is not None else np.ones(count, np.int64)
    starts, strides = {}, {}
    for start, axis, step in zip(parts[0].tolist(), axes.tolist(), steps.tolist(), strict=True):
        of_sample = axis % (rank + 1) - 1
        if of_sample < 0 or step < 1:
            raise refusal(node, "it takes part of the batch, or goes backwards")
        size = shape[of_sample]
        starts[of_sample], strides[of_sample] = min(max(start + size if start < 0 else start, 0), size), step
    return starts, strides


def _sliced(values: Values, node: onnx.NodeProto, source: Value) -> Value:
    starts, strides = starts_of_slice(values, node, source.shape)
    return _taken(values, node, node.output[0], source, starts, strides)


def _split(values: Values, node: onnx.NodeProto, name: str, source: Value) -> Value:
    axis = int(values.graph.attributes(node).get("axis", 0)) % (len(source.shape) + 1) - 1
    if axis < 0:
        raise refusal(node, "it splits the batch")
    before = list(node.output)[: list(node.output).index(name)]
    start = sum(values.graph.shape(node, one)[axis] for one in before)
    return _taken(values, node, name, source, {axis: start}, {})


def pads_of(node: onnx.NodeProto, graph: Graph, rank: int) -> list[int]:
    """Return how many places a Pad adds in front of each axis of a sample; what is below 0 is cut off.

    Raises:
        ExportError: it depends on values, or it pads the batch.
    """
    pads = graph.constant(node.input[1]) if len(node.input) > 1 else None
    axes = graph.constant(node.input[3]) if len(node.input) > 3 and node.input[3] else None
    if pads is None or axes is not None or pads.size != 2 * (rank + 1) or pads[0] or pads[rank + 1]:
        raise refusal(node, "how much it pads depends on values, or it pads the batch, or axes that it names")
    return [int(n) for n in pads[1 : rank + 1]]


def surrounding(
    node: onnx.NodeProto, graph: Graph, sizes: Sequence[tuple[int, int, int]], bytes_each: int
) -> tuple[NDArray[np.int32], int, int]:
    """Return the arguments of the kernel that repeats parts of a value around it: axes, how, and bytes at a place.

    Args:
        node: a Pad by other than a constant.
        graph: its graph.
        sizes: of each axis in memory, outermost first: of the result, places in front, of the source.
        bytes_each: of an element.

    Raises:
        ExportError: it has no such form.
    """
    mode = graph.attributes(node).get("mode", b"constant")
    if mode not in AROUND:
        raise refusal(node, f"it pads by {mode.decode(errors='replace')!r}")
    if any(front < 0 or size < front + length for size, front, length in sizes):
        raise refusal(node, "it cuts off, and repeats what is left")
    axes, run = list(sizes), bytes_each
    while axes and axes[-1][1] == 0 and axes[-1][0] == axes[-1][2]:
        run *= axes.pop()[0]
    if len(axes) > 4:
        raise refusal(node, "it has more than four axes beside the batch")
    rows = [
        (size, -front, length, run * prod(n for _, _, n in axes[i + 1 :]))
        for i, (size, front, length) in enumerate(axes)
    ]
    rows = [(1, 0, 1, 0)] * (4 - len(rows)) + rows
    return np.array(rows, np.int32).reshape(-1), AROUND.index(mode), run


def _padded(values: Values, node: onnx.NodeProto, source: Value) -> Value:
    graph, rank = values.graph, len(source.shape)
    fronts = pads_of(node, graph, rank)
    if graph.attributes(node).get("mode", b"constant") == b"constant":
        return _taken(values, node, node.output[0], source, {axis: -n for axis, n in enumerate(fronts)}, {})
    shape = graph.shape(node, node.output[0])
    sizes = [(shape[axis], fronts[axis], source.shape[axis]) for axis in source.order]
    output = values.new(shape, source.order, source.grid)
    arguments = [source, output, *surrounding(node, graph, sizes, 1)]
    return values.add(FloatStep((source,), output, kernel="surround", arguments=arguments))
