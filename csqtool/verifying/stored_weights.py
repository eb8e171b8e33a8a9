"""The weights of an ONNX file, read without the exporter's code: the nodes that compute them are evaluated.

A layer's integers are the graph's value with the layer's name, or, if that is float, the integers that it is scaled
from: a tensor, or the result of nodes on constants. onnx's reference evaluator computes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from csqtool.onnx_isolated import evaluated

MANY_USERS = 5  # a constant that so many nodes read, such as the symbols of all layers, is computed once


@dataclass(frozen=True)
class WeightUse:
    """One place where integers become float.

    Attributes:
        output: the float value.
        scale: the value they are multiplied by.
        zero_point: the value that is subtracted before, empty for none.
        axis: axis of the integers' own shape that the scales belong to; None if they broadcast.
        problem: why this is no valid use of a weight.
    """

    output: str
    scale: str = ""
    zero_point: str = ""
    axis: int | None = None
    problem: str | None = None


class StoredWeights:
    """The weights of one file whose functions are inlined (`csqtool.onnx_file.flattened`)."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._proto = proto
        self._tensors = {t.name: t for t in proto.graph.initializer}
        self._nodes = list(proto.graph.node)  # an index into protobuf's own list makes a new object each time
        self._makers = {output: node for node in self._nodes for output in node.output}
        self._positions = {id(node): position for position, node in enumerate(self._nodes)}
        self._users: dict[str, list[onnx.NodeProto]] = {}
        self._computed: dict[str, onnx.TensorProto] = {}
        for node in self._nodes:
            for name in dict.fromkeys(node.input):
                self._users.setdefault(name, []).append(node)

    def integers_of(self, name: str) -> str:
        """Return the name of a layer's integers: its own, or that of the value it is dequantized or scaled from."""
        node = self._makers.get(name)
        while node is not None:
            if node.op_type in ("DequantizeLinear", "Transpose"):
                name = node.input[0]
            elif node.op_type == "Mul" and (casts := [i for i in node.input if self._is_float_cast(i)]):
                name = self._makers[casts[0]].input[0]
            else:
                break
            node = self._makers.get(name)
        return name

    def _is_float_cast(self, name: str) -> bool:
        node = self._makers.get(name)
        return node is not None and node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.FLOAT

    def maker(self, name: str) -> onnx.NodeProto | None:
        """Return the node whose result a value is, None where there is none."""
        return self._makers.get(name)

    def users(self, name: str) -> list[onnx.NodeProto]:
        """Return the nodes that read a value, in order."""
        return self._users.get(name, [])

    def tensor(self, name: str) -> NDArray[Any] | None:
        """Return a tensor that is stored in the graph, None where there is none of that name."""
        return np.asarray(onnx.numpy_helper.to_array(self._tensors[name])) if name in self._tensors else None

    def constant(self, name: str) -> NDArray[Any] | None:
        """Return the value of a constant; None if `name` is not one."""
        try:
            return self.value(name)
        except ValueError:
            return None

    def value(self, name: str) -> NDArray[Any]:
        """Return the value of a constant of the graph.

        Raises:
            ValueError: it is not in the file, or depends on the model's input.
        """
        if (tensor := self.tensor(name)) is not None:
            return tensor
        if name not in self._makers:
            raise ValueError("its integers are not in the file")
        nodes, tensors = self._behind(name)
        shared = [o for node in nodes for o in node.output if o != name and len(self.users(o)) >= MANY_USERS]
        if shared:
            for output in shared:
                self._computed[output] = onnx.numpy_helper.from_array(self.value(output), output)
            nodes, tensors = self._behind(name)
        output = onnx.ValueInfoProto(name=name)
        graph = onnx.helper.make_graph(nodes, "weight", [], [output], tensors)
        model = onnx.helper.make_model(
            graph, opset_imports=self._proto.opset_import, ir_version=self._proto.ir_version
        )  # fmt: skip
        try:
            (value,) = evaluated(model)
        except RuntimeError as error:  # the file may hold anything
            raise ValueError(f"its integers cannot be computed: {error}") from error
        return np.asarray(value)

    def _behind(self, name: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """Return the nodes, in order, and the tensors that a constant is computed from."""
        queue, nodes, tensors = [name], set(), []
        seen = set()
        while queue:
            current = queue.pop()
            if current in seen or not current:
                continue
            seen.add(current)
            if current in self._tensors:
                tensors.append(self._tensors[current])
            elif current in self._computed:
                tensors.append(self._computed[current])
            elif current in self._makers:
                nodes.add(self._positions[id(self._makers[current])])
                queue.extend(self._makers[current].input)
            else:
                raise ValueError(f"its integers depend on {current}")
        return [self._nodes[position] for position in sorted(nodes)], tensors

    def uses(self, name: str, permutation: tuple[int, ...] | None = None) -> list[WeightUse]:
        """Return every place where the integers `name` become float, also after a Transpose.

        Args:
            name: the value of the integers.
            permutation: how the value's axes come from the layer's, if they were exchanged.
        """
        found: list[WeightUse] = []
        for node in self.users(name):
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "DequantizeLinear" and node.input[0] == name:
                axis = int(attributes.get("axis", 1))
                zero_point = node.input[2] if len(node.input) > 2 else ""
                found.append(WeightUse(node.output[0], node.input[1], zero_point,
                                       axis if permutation is None else permutation[axis]))  # fmt: skip
            elif node.op_type == "Transpose" and permutation is None:
                found += self.uses(node.output[0], tuple(attributes["perm"]))
            elif node.op_type == "Cast" and attributes["to"] == onnx.TensorProto.FLOAT:
                factors = self.users(node.output[0])
                found += [self._product(node.output[0], factor) for factor in factors]
            else:
                found.append(WeightUse(node.output[0], problem=f"{node.op_type} reads its integers"))
        return found

    def _product(self, name: str, node: onnx.NodeProto) -> WeightUse:
        if node.op_type != "Mul":
            return WeightUse(node.output[0], problem=f"{node.op_type} reads its integers without their scale")
        return WeightUse(node.output[0], next(other for other in node.input if other != name))
