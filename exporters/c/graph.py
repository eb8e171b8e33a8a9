"""A standard ONNX graph with QuantizeLinear and DequantizeLinear, for the translation into C: who makes what, sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from csqtool.errors import ExportError
from exporters.c.batches import Moved, computed_values, moved_values


class Graph:
    """A graph with a batch of one.

    Args:
        proto: the file, with integer weights in a native type.

    Raises:
        ExportError: it has more than one input or output.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        fixed = _of_samples(proto, 1)
        for what, values in (("inputs", fixed.graph.input), ("outputs", fixed.graph.output)):
            if len(values) != 1:
                names = ", ".join(value.name for value in values)
                raise ExportError(f"C inference has one input and one output; the {what} are {names}; {HINT}")
        fixed = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
        self.nodes = list(fixed.graph.node)
        self.input = fixed.graph.input[0].name
        self.input_type = fixed.graph.input[0].type.tensor_type.elem_type
        self.output = fixed.graph.output[0].name
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in fixed.graph.initializer}
        self._shapes = _shapes(fixed)
        self._refused: set[str] = set()
        self._set_makers()
        of_two = _shapes(onnx.shape_inference.infer_shapes(_of_samples(proto, 2), data_prop=True))
        computed = computed_values(self.nodes, self.input)
        moved = moved_values(computed, self._shapes, of_two)
        if moved and self.output not in moved:
            constants = {n: a for n in self._shapes | self._constants if (a := self.constant(n)) is not None}
            found = Moved(self.nodes, computed, moved, self._shapes, constants)
            self.nodes, self._shapes, self._refused = found.nodes, found.shapes, found.refused
            self._constants |= found.constants
            self._set_makers()

    def _set_makers(self) -> None:
        self.makers = {output: node for node in self.nodes for output in node.output}

    def constant(self, name: str) -> NDArray[Any] | None:
        """Return a constant, None where `name` is computed from the input."""
        if name in self._constants:
            found: NDArray[Any] = self._constants[name]
            return found
        node = self.makers.get(name)
        if node is None:
            return None
        if node.op_type == "Constant":
            return np.asarray(numpy_helper.to_array(node.attribute[0].t)) if node.attribute[0].HasField("t") else None
        if node.op_type == "Transpose":
            source = self.constant(node.input[0])
            return None if source is None else source.transpose(self.attributes(node)["perm"])
        return None

    def number(self, name: str) -> float | None:
        """Return a constant of one element as a number."""
        array = self.constant(name)
        return None if array is None or array.size != 1 else float(array.reshape(()))

    def shape(self, node: onnx.NodeProto, name: str) -> tuple[int, ...]:
        """Return a value's sizes without the batch.

        Raises:
            ExportError: they are not fixed, or the first axis is not the batch.
        """
        found = self._shapes.get(name)
        if not found or min(found) < 1 or found[0] != 1 or name in self._refused:
            raise refusal(node, "the sizes of a sample are not fixed, or other axes are merged into the batch")
        return found[1:]

    @staticmethod
    def attributes(node: onnx.NodeProto) -> Mapping[str, Any]:
        """Return a node's attributes by name."""
        return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _of_samples(proto: onnx.ModelProto, count: int) -> onnx.ModelProto:
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    del fixed.graph.value_info[:]  # of any number of samples
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = count
    return fixed


def _shapes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {
        value.name: tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim)
        for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output)
    }


HINT = "--content weights writes the packed weights and their reader alone"


class NoIntegerForm(ExportError):
    """A value is computed neither from integers to integers nor by a table; it may have a form in float."""


def refusal(node: onnx.NodeProto, reason: str) -> ExportError:
    """Return the error that stops an export at a node."""
    return ExportError(f"C inference does not cover {node.op_type} {node.output[0]!r}: {reason}; {HINT}")
