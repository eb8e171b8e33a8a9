"""Graphs that move the batch, as `nn.MultiheadAttention` does: of one sample, it is an axis of size 1 like any other.

A value whose first axis is not the batch gets an axis of size 1 in front of all its own, so that all values of a graph
begin with one that is left out where sizes of a sample are meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

Shapes = dict[str, tuple[int, ...]]
VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout")
# One axis that an attribute names, or several that an input of this number does.
BY_ATTRIBUTE: Mapping[str, int] = {"Gather": 0, "Split": 0, "Concat": 0, "Softmax": -1, "LayerNormalization": -1}
BY_INPUT: Mapping[str, int] = {"Slice": 3, "ReduceMean": 1}
# Operators that do the same whatever is in front of the last axes.
KEPT = frozenset({
    "Abs", "Add", "Clip", "DequantizeLinear", "Div", "Elu", "Erf", "Exp", "Gemm", "Greater", "HardSigmoid",
    "HardSwish", "LeakyRelu", "MatMul", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "QuantizeLinear", "Relu",
    "Selu", "Sigmoid", "Softplus", "Sub", "Tanh", "Where",
})  # fmt: skip


def computed_values(nodes: Sequence[onnx.NodeProto], source: str) -> set[str]:
    """Return the values that are computed from the input `source`, itself included, but not from sizes alone."""
    live = {source}
    for node in nodes:
        if node.op_type != "Shape" and not live.isdisjoint(node.input):
            live |= set(node.output)
    return live


def moved_values(computed: set[str], of_one: Shapes, of_two: Shapes) -> set[str]:
    """Return the values that do not begin with the batch alone.

    Args:
        computed: from `computed_values`.
        of_one: sizes of the values for one sample; values of unknown sizes are left out.
        of_two: for two samples.
    """
    found = set()
    for name in computed & of_one.keys() & of_two.keys():
        one, two = of_one[name], of_two[name]
        if min(one, default=0) > 0 and min(two, default=0) > 0 and (one[0], two) != (1, (2, *one[1:])):
            found.add(name)
    return found


class Moved:
    """The nodes of a graph that moves the batch, for one sample, with an axis in front of each value that it moves.

    Attributes:
        nodes: the nodes, in order; one that has no such form is left as it is, and named in `refused`.
        shapes: sizes of all values.
        constants: of new names.
        refused: outputs of nodes that have no such form.

    Args:
        nodes: of the graph.
        computed: from `computed_values`.
        moved: from `moved_values`.
        shapes: sizes of the values for one sample.
        constants: those of the graph.
    """

    def __init__(
        self, nodes: Sequence[onnx.NodeProto], computed: set[str], moved: set[str], shapes: Shapes,
        constants: Mapping[str, NDArray[Any]],
    ) -> None:  # fmt: skip
        self._computed, self._moved, self._sizes, self._known = computed, moved, shapes, constants
        self.nodes: list[onnx.NodeProto] = []
        self.shapes = {name: (1, *sizes) if name in moved else sizes for name, sizes in shapes.items()}
        self.constants: dict[str, NDArray[Any]] = {}
        self.refused: set[str] = set()
        for node in nodes:
            if moved.isdisjoint((*node.input, *node.output)) or node.op_type in (*VIEWS, "Shape"):
                self.nodes.append(node)
            elif node.op_type == "Transpose":
                self._transposed(node)
            else:
                self._shifted(node)

    def _transposed(self, node: onnx.NodeProto) -> None:
        """Transpose the axes that have more than one element."""
        source, name = node.input[0], node.output[0]
        sizes = self._sizes[source]
        kept = [axis for axis, size in enumerate(sizes) if size > 1]
        order = [kept.index(axis) for axis in helper.get_attribute_value(node.attribute[0]) if axis in kept]
        last = self._view(source, f"{name}/kept", (1, *(sizes[axis] for axis in kept)))
        if order != sorted(order):
            other = f"{name}/moved"
            self.nodes.append(helper.make_node("Transpose", [last], [other], perm=[0, *(a + 1 for a in order)]))
            self.shapes[other] = (1, *(self.shapes[last][a + 1] for a in order))
            last = other
        self._view(last, name, self.shapes[name])

    def _view(self, source: str, name: str, sizes: tuple[int, ...]) -> str:
        self.nodes.append(helper.make_node("Reshape", [source, ""], [name]))
        self.shapes[name] = sizes
        return name

    def _shifted(self, node: onnx.NodeProto) -> None:
        """Count axes from behind, where the one in front makes no difference."""
        kind, is_moved = node.op_type, not self._moved.isdisjoint(node.input)
        name = node.output[0]
        same = all((one in self._moved) == is_moved for one in self._computed.intersection(node.input))
        ends = is_moved and len(node.output) == 1 and name not in self._moved  # what is left begins with the batch
        same &= ends or all((one in self._moved) == is_moved for one in node.output)
        if kind not in (*BY_ATTRIBUTE, *BY_INPUT, *KEPT) or not same:
            self.refused |= set(node.output)
            self.nodes.append(node)
            return
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if is_moved and kind in BY_ATTRIBUTE:
            kept = [a for a in node.attribute if a.name != "axis"]
            axes = [helper.get_attribute_value(a) for a in node.attribute if a.name == "axis"] or [BY_ATTRIBUTE[kind]]
            del copy.attribute[:]
            copy.attribute.extend([*kept, helper.make_attribute("axis", self._from_behind(node, axes)[0])])
        elif is_moved and kind in BY_INPUT:
            position = BY_INPUT[kind]
            named = self._known.get(node.input[position]) if len(node.input) > position else None
            if named is None:
                self.refused |= set(node.output)
            else:
                copy.input[position] = f"{name}/axes"
                found = self._from_behind(node, named.reshape(-1).tolist())
                self.constants[copy.input[position]] = np.array(found, np.int64)
        self.nodes.append(copy)
        if ends:
            copy.output[0] = f"{name}/moved"
            self.shapes[copy.output[0]] = (1, *self.shapes[name])
            self._view(copy.output[0], name, self.shapes[name])

    def _from_behind(self, node: onnx.NodeProto, axes: Sequence[int]) -> list[int]:
        rank = len(self._sizes[node.input[0]])
        return [axis - rank if axis >= 0 else axis for axis in axes]
