"""From a quantized ONNX graph to an integer program: every QuantizeLinear becomes the end of one kernel."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import onnx

from csqtool.errors import ExportError
from exporters.c.fixed_point import common_factors, factor, float_factors, quantized
from exporters.c.float_steps import FloatValue
from exporters.c.floats import Floats
from exporters.c.graph import Graph, NoIntegerForm, refusal
from exporters.c.layers import float_layer, has_integer_bias, layer_ending_at, quantized_layer
from exporters.c.program import INPUT, AveragePool, Binary, Concat, Dequantize, Grid, Program, Table, Value
from exporters.c.rearranging import REARRANGING, VIEWS, keeps_grid, rearranged
from exporters.c.tables import Curve
from exporters.c.values import Values, channels_last, plain
from exporters.c.windows import window_of

BOUNDS = ("Relu", "Clip")


def translate(proto: onnx.ModelProto, *, in_float: bool = False) -> Program:
    """Return the program of a graph whose weights are int8 or int16 initializers.

    Args:
        proto: the graph.
        in_float: whether results are moved to their grids in float32, not by integers.

    Raises:
        ExportError: a node is not covered; names it.
    """
    return _Translation(Graph(proto), in_float=in_float).program()


class _Translation:
    def __init__(self, graph: Graph, *, in_float: bool) -> None:
        self._graph = graph
        self._values = Values(graph, in_float=in_float)
        self._known_values: dict[str, Value] = {}
        self._input: tuple[Value, str] | None = None
        self._curve = Curve(graph, self._known)
        self._floats = Floats(self._values, self._known, lambda: self._input is not None)

    def program(self) -> Program:
        for node in self._graph.nodes:
            if node.op_type == "DequantizeLinear" and self._graph.constant(node.input[0]) is None:
                self._place(node)
        self._finish()
        value: Value | FloatValue | None
        value, place = self._input or (self._floats.input, "")
        if value is None:
            raise ExportError("C inference needs an output that is computed from the input")
        made = self._graph.makers[self._graph.output]
        return Program(
            value, place, self._graph.shape(made, self._graph.output), self._values.steps, self._values.sizes
        )

    # -- quantized values ---------------------------------------------------------------------------------------

    def _place(self, node: onnx.NodeProto) -> None:
        """Compute what a DequantizeLinear returns."""
        quantizer, low, high = self._graph.makers.get(node.input[0]), 0, 255
        if quantizer is not None and quantizer.op_type == "Clip":
            bounds = [self._graph.number(name) for name in quantizer.input[1:3]]
            if len(bounds) != 2 or bounds[0] is None or bounds[1] is None:
                raise refusal(quantizer, "its bounds are no constants")
            low, high = int(bounds[0]), int(bounds[1])
            quantizer = self._graph.makers.get(quantizer.input[0])
        if quantizer is None or quantizer.op_type != "QuantizeLinear":
            raise refusal(node, "its integers come from no quantizer")
        scale, zero_point = (self._graph.number(name) for name in node.input[1:3])
        if scale is None or zero_point is None:
            raise refusal(node, "scale and zero point are not one constant each")
        grid = Grid(np.float32(scale), int(zero_point), low, high)
        name = node.output[0]
        if quantizer.input[0] == self._graph.input:
            self._known_values[name] = self._quantized_input(node, grid)
            return
        steps_before = len(self._values.steps)
        self._known_values[name] = self._rounded(quantizer.input[0], grid, quantizer)
        makers = [
            s
            for s in self._values.steps[steps_before:]
            if s.output and s.output.buffer == self._known_values[name].buffer
        ]
        makers[-1].place, makers[-1].placed = name, self._known_values[name]

    def _rounded(self, name: str, grid: Grid, quantizer: onnx.NodeProto) -> Value:
        """Return a value on a grid, computed from integers or, where that has no form, in float."""
        steps, sizes, known = len(self._values.steps), len(self._values.sizes), dict(self._known_values)
        try:
            return self._compute(name, grid, quantizer)
        except NoIntegerForm:
            del self._values.steps[steps:], self._values.sizes[sizes:]
            self._known_values = known
            return self._floats.on_grid(name, grid, quantizer)

    def _quantized_input(self, node: onnx.NodeProto, grid: Grid) -> Value:
        shape = self._graph.shape(node, self._graph.input)
        order = (*range(1, len(shape)), 0) if len(shape) in (2, 3) else plain(len(shape))
        value = Value(INPUT, shape, order, grid)
        if self._input is not None or self._floats.input is not None:
            raise refusal(node, "the input is quantized twice, or also read in float")
        self._input = value, node.output[0]
        return value

    def _known(self, name: str) -> Value | None:
        """Return a value that is quantized, or a rearrangement of such; None otherwise."""
        if name in self._known_values:
            return self._known_values[name]
        node = self._graph.makers.get(name)
        if node is None or node.op_type not in REARRANGING or not keeps_grid(self._values, node):
            return None
        source = self._known(node.input[0])
        if source is None:
            return None
        self._known_values[name] = rearranged(self._values, node, name, source)
        return self._known_values[name]

    def _needed(self, node: onnx.NodeProto, name: str) -> Value:
        value = self._known(name)
        if value is None:
            maker = self._graph.makers.get(name)
            reason = (
                f"its input {name!r} is not quantized"
                if maker is None
                else "it is computed in float where a quantized value is needed"
            )
            raise NoIntegerForm(str(refusal(node if maker is None else maker, reason)))
        return value

    # -- what ends in a quantizer --------------------------------------------------------------------------------

    def _compute(self, name: str, grid: Grid, user: onnx.NodeProto) -> Value:
        """Return the value `name` on a grid."""
        node = self._graph.makers.get(name)
        source = self._known(name)
        if source is not None:
            return self._table(name, source, grid)
        if node is None and name == self._graph.input:
            raise NoIntegerForm(str(refusal(user, "it rearranges the input before anything quantizes it")))
        if node is None:
            raise refusal(user, "its input is neither computed nor the network's input")
        if node.op_type in BOUNDS and self._curve.source(name) is None:
            return self._compute(node.input[0], self._bounded(node, grid), node)
        if node.op_type == "Max" and len(node.input) == 1:
            return self._compute(node.input[0], grid, node)
        if node.op_type in REARRANGING and keeps_grid(self._values, node):
            return self._rearranged_after(node, name, grid)
        layer = layer_ending_at(self._graph, node)
        if layer is not None:
            source = self._needed(layer[0], layer[0].input[0])
            if not has_integer_bias(self._graph, *layer, source):
                raise NoIntegerForm(str(refusal(node, "its bias is added in float")))
            return quantized_layer(self._values, *layer, source, grid)
        return self._on_kernel(node, name, grid)

    def _on_kernel(self, node: onnx.NodeProto, name: str, grid: Grid) -> Value:
        source = self._curve.source(name)
        if source is not None:
            return self._table(name, source, grid)
        if node.op_type not in KERNELS:
            raise NoIntegerForm(str(refusal(node, "it has no integer kernel")))
        return KERNELS[node.op_type](self, node, grid)

    def _rearranged_after(self, node: onnx.NodeProto, name: str, grid: Grid) -> Value:
        """Return what a rearrangement makes from rounded values, which are the rounded values of what it makes."""
        is_filled = node.op_type == "Pad" and self._graph.attributes(node).get("mode", b"constant") == b"constant"
        if is_filled and not grid.low <= grid.zero_point <= grid.high:
            raise refusal(node, "the bounds after it exclude the zeros that it adds")
        return rearranged(self._values, node, name, self._compute(node.input[0], grid, node))

    def _bounded(self, node: onnx.NodeProto, grid: Grid) -> Grid:
        """Return a grid with the bounds of a ReLU or Clip in front of it: rounding keeps the order."""
        bounds = [0.0, None]
        if node.op_type == "Clip":
            bounds = [self._graph.number(one) if one else None for one in [*node.input, "", ""][1:3]]
        low, high = (
            default if bound is None else quantized(bound, float(grid.scale), grid.zero_point, 255)
            for bound, default in zip(bounds, (0, 255), strict=True)
        )
        return Grid(
            grid.scale, grid.zero_point, min(max(grid.low, low), grid.high), max(min(grid.high, high), grid.low)
        )

    def _table(self, name: str, source: Value, grid: Grid) -> Value:
        output = self._values.new(source.shape, source.order, grid)
        return self._values.add(Table((source,), output, table=self._curve.table(name, source, grid)))

    def concat(self, node: onnx.NodeProto, grid: Grid) -> Value:
        values = [self._needed(node, name) for name in node.input]
        shape = self._graph.shape(node, node.output[0])
        axis = int(self._graph.attributes(node)["axis"]) % (len(shape) + 1) - 1
        if axis < 0:
            raise refusal(node, "it joins batches")
        values = [self._values.ordered(value, values[0].order) for value in values]
        tables = [self._curve.table(name, v, grid) for name, v in zip(node.input, values, strict=True)]
        same = np.arange(256)
        output = self._values.new(shape, values[0].order, grid)
        return self._values.add(Concat(
            tuple(values), output, axis=values[0].order.index(axis),
            tables=[None if (table == same).all() else table for table in tables],
        ))  # fmt: skip

    def binary(self, node: onnx.NodeProto, grid: Grid) -> Value:
        left, right = (self._needed(node, name) for name in node.input)
        shape = self._graph.shape(node, node.output[0])
        swapped = left.shape != shape
        if swapped:
            left, right = right, left
        rank = len(shape)
        order = left.order
        if right.shape == shape:
            right = self._values.ordered(right, order)
        elif len(right.shape) == rank and right.shape[0] == shape[0] and prod(right.shape) == shape[0]:
            order = channels_last(rank)
            left, right = self._values.ordered(left, order), self._values.ordered(right, order)
        else:
            raise NoIntegerForm(str(refusal(node, "its operands have neither the same sizes nor one value a channel")))
        if left.shape != shape:
            raise NoIntegerForm(str(refusal(node, "both operands are repeated")))
        target = float(grid.scale)
        scales = float(left.grid.scale), float(right.grid.scale)
        ratios = [scales[0] * scales[1] / target]
        if node.op_type != "Mul":
            ratios = [scale / target for scale in scales]
            ratios[not swapped] *= -1 if node.op_type == "Sub" else 1  # of what is subtracted
        step = Binary((left, right), None, multiplies=node.op_type == "Mul")
        try:
            if self._values.in_float:
                step.floats = float_factors(ratios, same_once=False)
            elif node.op_type == "Mul":
                multiplier, step.shift = factor(ratios[0])
                step.multipliers = (multiplier, 0)
            else:
                first, second, step.shift = common_factors(*ratios)
                step.multipliers = (first, second)
        except OverflowError as error:
            raise refusal(node, "its scales are too far apart") from error
        step.output = self._values.new(shape, order, grid)
        return self._values.add(step)

    def average_pool(self, node: onnx.NodeProto, grid: Grid) -> Value:
        source = self._needed(node, node.input[0])
        attributes = self._graph.attributes(node)
        shape = self._graph.shape(node, node.output[0])
        rank = len(source.shape)
        if rank not in (2, 3) and node.op_type == "ReduceMean":
            raise NoIntegerForm(str(refusal(node, "it does not take the mean over one or two axes of positions")))
        if rank not in (2, 3):
            raise refusal(node, f"it has {rank - 1} dimensions, not 1 or 2")
        sizes = source.shape[1:]
        if node.op_type == "AveragePool":
            if attributes.get("ceil_mode", 0):
                raise refusal(node, "windows that begin inside and end outside (ceil_mode) are not covered")
            window = window_of(node, attributes, attributes["kernel_shape"], sizes, shape[1:])
        else:
            if node.op_type == "ReduceMean":
                axes = self._graph.constant(node.input[1]) if len(node.input) > 1 else None
                if axes is None or sorted(int(a) % (rank + 1) for a in axes.reshape(-1)) != list(range(2, rank + 1)):
                    raise NoIntegerForm(str(refusal(node, "it does not take the mean over all positions")))
            window = window_of(node, {}, sizes, sizes, [1] * len(sizes))
        source = self._values.ordered(source, channels_last(rank))
        ratio = float(source.grid.scale) / float(grid.scale)
        try:
            ratios = [ratio / count for count in range(1, prod(window.kernel) + 1)]
            in_float = self._values.in_float
            floats = float_factors(ratios, same_once=False) if in_float else None
            factors = [] if in_float else [factor(one) for one in ratios]
        except OverflowError as error:
            raise refusal(node, "its scales are too far apart") from error
        counts_padding = bool(attributes.get("count_include_pad", 0)) or not any(attributes.get("pads", [0]))
        pooled = (shape[0], *[1] * (rank - 1)) if node.op_type == "ReduceMean" else shape
        output = self._values.new(pooled, source.order, grid)
        done = self._values.add(
            AveragePool((source,), output, window=window, factors=factors, floats=floats, counts_padding=counts_padding)
        )
        return Value(done.buffer, shape, plain(len(shape)), grid) if pooled != shape else done

    def _finish(self) -> None:
        """Compute the program's output in float."""
        name = self._graph.output
        node = self._graph.makers.get(name)
        while node is not None and node.op_type in VIEWS and node.op_type != "Transpose" and self._known(name) is None:
            name = node.input[0]  # of one sample, these change no order
            node = self._graph.makers.get(name)
        value = self._known(name)
        if value is not None:
            in_order = self._values.ordered(value, plain(len(value.shape)))
            self._values.steps.append(Dequantize((in_order,), None))
            return
        if node is None:
            raise ExportError("C inference needs an output that is computed from the input")
        layer = layer_ending_at(self._graph, node)
        source = None if layer is None else self._known(layer[0].input[0])
        if layer is None or source is None or not has_integer_bias(self._graph, *layer, source):
            self._floats.output(self._graph.output, node)
        else:
            float_layer(self._values, *layer, source)


# Operators with a kernel of their own; Add, Sub and Mul of one value alone are tables.
KERNELS: dict[str, Callable[[_Translation, onnx.NodeProto, Grid], Value]] = {
    "GlobalAveragePool": _Translation.average_pool, "AveragePool": _Translation.average_pool,
    "ReduceMean": _Translation.average_pool, "Concat": _Translation.concat, "Add": _Translation.binary,
    "Sub": _Translation.binary, "Mul": _Translation.binary,
}  # fmt: skip
