"""Operators in float32, for what has no integer form: docs/c-inference.md, section 5.2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import numpy as np
import onnx

from exporters.c.float_layers import embedding, is_embedding, layer_of_floats
from exporters.c.float_steps import CONSTANT, FloatPart, FloatStep, FloatValue, Numbers
from exporters.c.float_windows import FORMULAS, WINDOWED, Formula
from exporters.c.graph import refusal
from exporters.c.layers import float_layer, has_integer_bias, layer_ending_at
from exporters.c.program import INPUT, Grid, Value
from exporters.c.rearranging import starts_of_slice
from exporters.c.values import Values, plain

UNARY = {"Neg": "NEGATIVE", "Abs": "ABSOLUTE", "Relu": "RECTIFIED", "Exp": "EXPONENTIAL", "Erf": "ERROR_FUNCTION",
         "Sigmoid": "SIGMOID", "Tanh": "TANGENT", "Softplus": "SOFTPLUS"}  # fmt: skip
BINARY = {"Add": "PLUS", "Sub": "MINUS", "Mul": "TIMES", "Div": "OVER", "Max": "LARGER", "Min": "SMALLER",
          "Greater": "GREATER"}  # fmt: skip
RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout")
AXES = 4


class Floats:
    """Computes values of the graph in float32, each once.

    Args:
        values: is added to.
        quantized: returns the quantized value of a name, None where it is none.
        input_is_quantized: tells whether a quantizer reads the network's input.

    Attributes:
        input: the network's input in float or as whole numbers, where something reads it so.
    """

    def __init__(
        self, values: Values, quantized: Callable[[str], Value | None], input_is_quantized: Callable[[], bool]
    ) -> None:
        self._values = values
        self._graph = values.graph
        self._quantized = quantized
        self._input_is_quantized = input_is_quantized
        self._made: dict[str, FloatValue] = {}
        self.input: FloatValue | None = None

    def on_grid(self, name: str, grid: Grid, user: onnx.NodeProto) -> Value:
        """Return a value in float, rounded to a grid.

        Raises:
            ExportError: it is computed by an operator without a kernel; names it.
        """
        source = self.value(name, user)
        output = self._values.new(source.shape, plain(len(source.shape)), grid)
        arguments = [source, output, source.elements, grid.scale, grid.zero_point, grid.low, grid.high]
        return self._values.add(FloatStep((source,), output, kernel="to_integers", arguments=arguments))

    def output(self, name: str, node: onnx.NodeProto) -> None:
        """Let the program's output be a value in float; errors as for `on_grid`."""
        source = self.value(name, node)
        arguments = ["output", source, source.size_bytes]
        self._values.steps.append(FloatStep((source,), None, kernel="memcpy", arguments=arguments))

    def value(self, name: str, user: onnx.NodeProto) -> FloatValue:
        """Return a value in float; errors as for `on_grid`."""
        if name not in self._made:
            self._made[name] = self._value(name, user)
        return self._made[name]

    def _value(self, name: str, user: onnx.NodeProto) -> FloatValue:
        constant = self._graph.constant(name)
        if constant is not None:
            return FloatValue(CONSTANT, constant.shape, np.asarray(constant, np.float32))
        source = self._quantized(name)
        if source is not None:
            source = self._values.ordered(source, plain(len(source.shape)))
            output = self._new(source.shape)
            arguments = [source, output, source.elements, source.grid.zero_point, source.grid.scale]
            return self._add(FloatStep((source,), output, kernel="to_floats", arguments=arguments))
        node = self._graph.makers.get(name)
        if node is None:
            return self._the_input(name, user)
        layer = layer_ending_at(self._graph, node)
        if layer is not None:
            return self._layer(*layer, self._graph.shape(node, name))
        if is_embedding(self._graph, node):
            numbers = self._numbers(node)
            output = self._new(self._graph.shape(node, name))
            embedding(self._values, node, numbers, output)
            return output
        return self._operator(node, name)

    def _layer(self, node: onnx.NodeProto, bias: str, shape: tuple[int, ...]) -> FloatValue:
        source = self._quantized(node.input[0])
        read = self.value(node.input[0], node) if source is None else None
        output = self._new(shape)
        if source is not None and has_integer_bias(self._graph, node, bias, source):
            float_layer(self._values, node, bias, source, output)
        elif source is not None:
            float_layer(self._values, node, "", source, output)
            added = self.value(bias, node).data
            assert added is not None
            channels = (-1, *[1] * (len(shape) - 1)) if node.op_type in ("Conv", "ConvTranspose") else (-1,)
            return self._binary(node, "PLUS", output, FloatValue(CONSTANT, added.reshape(channels).shape, added))
        elif read is not None:
            layer_of_floats(self._values, node, bias, read, output)
        return output

    def _the_input(self, name: str, user: onnx.NodeProto) -> FloatValue:
        if name != self._graph.input or self._input_is_quantized():
            raise refusal(user, f"its input {name!r} is not quantized")
        if self._graph.input_type != onnx.TensorProto.FLOAT:
            raise refusal(user, "it reads whole numbers")
        self.input = FloatValue(INPUT, self._graph.shape(user, name))
        return self.input

    def _numbers(self, node: onnx.NodeProto) -> FloatValue:
        """Return the whole numbers that an embedding reads: the network's input."""
        if node.input[1] != self._graph.input or self._graph.input_type == onnx.TensorProto.FLOAT:
            raise refusal(node, "the rows that it takes are not the network's input")
        self.input = Numbers(INPUT, self._graph.shape(node, self._graph.input))
        return self.input

    def _operator(self, node: onnx.NodeProto, name: str) -> FloatValue:
        if node.op_type in RESHAPES:
            source = self.value(node.input[0], node)
            return FloatValue(source.buffer, self._graph.shape(node, name), source.data)
        if node.op_type in UNARY:
            return self._unary(UNARY[node.op_type], self.value(node.input[0], node))
        if node.op_type in BINARY and len(node.input) == 2:
            return self._binary(node, BINARY[node.op_type], *(self.value(one, node) for one in node.input))
        if node.op_type in FORMULAS:
            return self._formula(node, FORMULAS[node.op_type])
        if node.op_type in WINDOWED:
            return WINDOWED[node.op_type](self._values, node, self.value(node.input[0], node))
        if node.op_type not in OPERATORS:
            raise refusal(node, "the operator has a kernel neither for integers nor for floats")
        return OPERATORS[node.op_type](self, node, name)

    # -- kernels -------------------------------------------------------------------------------------------------

    def _new(self, shape: tuple[int, ...]) -> FloatValue:
        return FloatValue(self._values.reserve(4 * prod(shape)), shape)

    def _add(self, step: FloatStep) -> FloatValue:
        self._values.steps.append(step)
        assert isinstance(step.output, FloatValue)
        return step.output

    def _unary(self, kind: str, source: FloatValue) -> FloatValue:
        output = self._new(source.shape)
        arguments = [kind, source, output, source.elements]
        return self._add(FloatStep((source,), output, kernel="unary", arguments=arguments, may_overwrite=True))

    def _formula(self, node: onnx.NodeProto, formula: Formula) -> FloatValue:
        """Return a function that others compute."""
        operands = [self.value(one, node) for one in node.input]

        def combined(kind: str, *terms: FloatValue | float) -> FloatValue:
            values = [FloatValue(CONSTANT, (), np.array(t, np.float32)) if isinstance(t, float) else t for t in terms]
            return self._unary(kind, values[0]) if len(values) == 1 else self._binary(node, kind, values[0], values[1])

        return formula(combined, operands, self._graph.attributes(node))

    def _binary(self, node: onnx.NodeProto, kind: str, a: FloatValue, b: FloatValue) -> FloatValue:
        """Return a combination of two values, repeated along axes of size 1 as numpy does."""
        shape = self._graph.shape(node, node.output[0])
        if len(shape) > AXES:
            raise refusal(node, f"it has more than {AXES} axes beside the batch")
        columns = [[1] * (AXES - len(shape)) + list(shape)]
        for one in (a, b):
            sizes = one.shape
            if one.data is not None and len(sizes) == len(shape) + 1 and sizes[0] == 1:
                sizes = sizes[1:]  # the batch
            if len(sizes) > len(shape) or (one.data is None and len(sizes) != len(shape)):
                raise refusal(node, "its operands have different numbers of axes")
            padded = (1,) * (AXES - len(sizes)) + sizes
            columns.append([0 if size == 1 else prod(padded[axis + 1 :]) for axis, size in enumerate(padded)])
        axes = np.array(columns, np.int32).T.reshape(-1)
        output = self._new(shape)
        same = all(one.data is not None or one.shape == shape for one in (a, b))
        return self._add(FloatStep((a, b), output, kernel="binary", arguments=[kind, a, b, output, axes],
                                   may_overwrite=same))  # fmt: skip

    def clip(self, node: onnx.NodeProto, name: str) -> FloatValue:
        """Return a value between bounds."""
        found = self.value(node.input[0], node)
        for kind, bound in zip(("LARGER", "SMALLER"), node.input[1:3], strict=False):
            if bound:
                found = self._binary(node, kind, found, self.value(bound, node))
        return found

    def power(self, node: onnx.NodeProto, name: str) -> FloatValue:
        """Return a square or a cube."""
        exponent = self._graph.number(node.input[1])
        if exponent not in (2.0, 3.0):
            raise refusal(node, "only squares and cubes are covered")
        base = self.value(node.input[0], node)
        found = self._binary(node, "TIMES", base, base)
        return found if exponent == 2.0 else self._binary(node, "TIMES", found, base)

    def where(self, node: onnx.NodeProto, name: str) -> FloatValue:
        """Return one of two values, by a condition."""
        operands = [self.value(one, node) for one in node.input]
        shape = self._graph.shape(node, name)
        if any(one.data is not None or one.shape != shape for one in operands):
            raise refusal(node, "its operands have different sizes, or one is a constant")
        output = self._new(shape)
        arguments = [*operands, output, output.elements]
        step = FloatStep(tuple(operands), output, kernel="choose", arguments=arguments, may_overwrite=True)
        return self._add(step)

    def matmul(self, node: onnx.NodeProto, name: str) -> FloatValue:
        """Return products of matrices."""
        a, b = (self.value(one, node) for one in node.input)
        shape = self._graph.shape(node, name)
        is_shared = b.data is not None and len(b.shape) == 2
        if len(a.shape) < 2 or a.data is not None or not (is_shared or b.shape[:-2] == a.shape[:-2]):
            raise refusal(node, "its operands are not as many matrices on both sides")
        rows, inner, columns = a.shape[-2], a.shape[-1], b.shape[-1]
        output = self._new(shape)
        arguments = [
            a, b, output, prod(a.shape[:-2]), rows, inner, columns, 0 if is_shared else inner * columns
        ]  # fmt: skip
        return self._add(FloatStep((a, b), output, kernel="matrices", arguments=arguments))

    def softmax(self, node: onnx.NodeProto, name: str) -> FloatValue:
        """Return the softmax along an axis."""
        source = self.value(node.input[0], node)
        rank = len(source.shape)
        axis = int(self._graph.attributes(node).get("axis", -1)) % (rank + 1) - 1
        if axis < 0:
            raise refusal(node, "it is along the batch")
        order = [*(a for a in range(rank) if a != axis), axis]
        moved = self._moved(node, source, order)
        output, count = self._new(moved.shape), moved.shape[-1]
        arguments = [moved, output, moved.elements // count, count]
        step = FloatStep((moved,), output, kernel="softmax", arguments=arguments, may_overwrite=True)
        return self._moved(node, self._add(step), [order.index(a) for a in range(rank)])

    def layer_norm(self, node: onnx.NodeProto, name: str) -> FloatValue:
        """Return LayerNorm over the last axes."""
        source = self.value(node.input[0], node)
        attributes = self._graph.attributes(node)
        axis = int(attributes.get("axis", -1)) % (len(source.shape) + 1) - 1
        count = prod(source.shape[axis:])
        weight = self._graph.constant(node.input[1])
        bias = self._graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(count)
        if axis < 0 or weight is None or bias is None or weight.size != count or bias.size != count:
            raise refusal(node, "its weight or bias is no constant")
        output = self._new(source.shape)
        epsilon = np.float32(attributes.get("epsilon", 1e-5))
        numbers = [np.asarray(one, np.float32).reshape(-1) for one in (weight, bias)]
        arguments = [source, output, source.elements // count, count, *numbers, epsilon]
        return self._add(FloatStep((source,), output, kernel="normalize", arguments=arguments, may_overwrite=True))

    def batch_norm(self, node: onnx.NodeProto, name: str) -> FloatValue:
        """Return BatchNorm of constants, where it folds into no layer."""
        source = self.value(node.input[0], node)
        constants = [self._graph.constant(one) for one in node.input[1:5]]
        if any(one is None for one in constants):
            raise refusal(node, "its numbers are no constants")
        gamma, beta, mean, variance = (np.asarray(one, np.float64) for one in constants)
        factor = gamma / np.sqrt(variance + float(self._graph.attributes(node).get("epsilon", 1e-5)))
        shape = (-1, *[1] * (len(source.shape) - 1))
        for kind, numbers in (("TIMES", factor), ("PLUS", beta - mean * factor)):
            values = numbers.astype(np.float32).reshape(shape)
            source = self._binary(node, kind, source, FloatValue(CONSTANT, values.shape, values))
        return source

    def reduce_mean(self, node: onnx.NodeProto, name: str) -> FloatValue:
        """Return the mean along axes."""
        source = self.value(node.input[0], node)
        rank = len(source.shape)
        found = self._graph.constant(node.input[1]) if len(node.input) > 1 else None
        if found is None:
            raise refusal(node, "its axes are no constant")
        reduced = sorted(int(axis) % (rank + 1) - 1 for axis in found.reshape(-1))
        if reduced[0] < 0:
            raise refusal(node, "it takes the mean over samples")
        kept = [axis for axis in range(rank) if axis not in reduced]
        moved = self._moved(node, source, [*kept, *reduced])
        count = prod(source.shape[axis] for axis in reduced)
        output = self._new(self._graph.shape(node, name))
        arguments = [moved, output, moved.elements // count, count]
        return self._add(FloatStep((moved,), output, kernel="mean", arguments=arguments))

    def transpose(self, node: onnx.NodeProto, name: str) -> FloatValue:
        """Return a value with its axes in another order."""
        permutation = self._graph.attributes(node)["perm"]
        if permutation[0] != 0:
            raise refusal(node, "it moves the batch")
        source = self.value(node.input[0], node)
        return self._taken(node, source, [a - 1 for a in permutation[1:]], {}, {}, self._graph.shape(node, name))

    def slice(self, node: onnx.NodeProto, name: str) -> FloatValue:
        """Return a part of a value."""
        source = self.value(node.input[0], node)
        starts, strides = starts_of_slice(self._values, node, source.shape)
        return self._taken(node, source, list(range(len(source.shape))), starts, strides, self._graph.shape(node, name))

    def split(self, node: onnx.NodeProto, name: str) -> FloatValue:
        """Return one of the parts of a value."""
        source = self.value(node.input[0], node)
        axis = int(self._graph.attributes(node).get("axis", 0)) % (len(source.shape) + 1) - 1
        if axis < 0:
            raise refusal(node, "it splits the batch")
        before = list(node.output)[: list(node.output).index(name)]
        start = sum(self._graph.shape(node, one)[axis] for one in before)
        shape = self._graph.shape(node, name)
        return self._taken(node, source, list(range(len(source.shape))), {axis: start}, {}, shape)

    def gather(self, node: onnx.NodeProto, name: str) -> FloatValue:
        """Return what has one number on an axis."""
        source, index = self.value(node.input[0], node), self._graph.constant(node.input[1])
        axis = int(self._graph.attributes(node).get("axis", 0)) % (len(source.shape) + 1) - 1
        if axis < 0 or index is None or index.ndim != 0 or source.data is not None:
            raise refusal(node, "only one constant place on one axis is covered")
        start = int(index) % source.shape[axis]
        part = tuple(1 if a == axis else n for a, n in enumerate(source.shape))
        taken = self._taken(node, source, list(range(len(source.shape))), {axis: start}, {}, part)
        return FloatValue(taken.buffer, self._graph.shape(node, name))

    def concat(self, node: onnx.NodeProto, name: str) -> FloatValue:
        """Return values one after another along an axis."""
        shape = self._graph.shape(node, name)
        axis = int(self._graph.attributes(node)["axis"]) % (len(shape) + 1) - 1
        if axis < 0:
            raise refusal(node, "it joins batches")
        sources = [self.value(one, node) for one in node.input]
        if any(source.data is not None for source in sources):
            raise refusal(node, "it joins a constant")
        output, after, at = self._new(shape), prod(shape[axis + 1 :]), 0
        for source in sources:
            count = source.shape[axis] * after
            place = FloatPart(output.buffer, output.shape, offset=4 * at)
            arguments = [source, place, prod(shape[:axis]), count, shape[axis] * after]
            self._add(FloatStep((source,), place, kernel="join_floats", arguments=arguments))
            at += count
        return output

    def _moved(self, node: onnx.NodeProto, source: FloatValue, order: list[int]) -> FloatValue:
        return self._taken(node, source, order, {}, {}, tuple(source.shape[axis] for axis in order))

    def _taken(
        self, node: onnx.NodeProto, source: FloatValue, order: list[int], starts: Mapping[int, int],
        strides: Mapping[int, int], shape: tuple[int, ...],
    ) -> FloatValue:  # fmt: skip
        """Return a copy of some of the values, with axis `order[i]` of the source as axis i."""
        if order == sorted(order) and source.shape == shape and not any(starts.values()):
            return source
        rows = [
            (size, starts.get(axis, 0), strides.get(axis, 1), source.shape[axis], prod(source.shape[axis + 1 :]))
            for size, axis in zip(shape, order, strict=True) if source.shape[axis] > 1
        ]  # fmt: skip
        if len(rows) > AXES or source.data is not None:
            raise refusal(node, f"it has more than {AXES} axes beside the batch, or moves a constant")
        rows = [(1, 0, 1, 1, 0)] * (AXES - len(rows)) + rows
        output = self._new(shape)
        axes = np.array(rows, np.int32).reshape(-1)
        return self._add(FloatStep((source,), output, kernel="take_floats", arguments=[source, output, axes]))


OPERATORS: Mapping[str, Callable[[Floats, onnx.NodeProto, str], FloatValue]] = {
    "Clip": Floats.clip, "MatMul": Floats.matmul, "Softmax": Floats.softmax, "LayerNormalization": Floats.layer_norm,
    "ReduceMean": Floats.reduce_mean, "Transpose": Floats.transpose, "Slice": Floats.slice, "Split": Floats.split,
    "Gather": Floats.gather, "Concat": Floats.concat, "BatchNormalization": Floats.batch_norm,
    "Pow": Floats.power, "Where": Floats.where,
}  # fmt: skip
