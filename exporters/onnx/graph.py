"""Small edits of a graph: named constants, inserted nodes, replaced nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir import convenience

NAMED = "csqtool.named"  # marks values that got a meaningful name


def name_value(value: ir.Value, name: str) -> None:
    """Give a value a name that the cleanup keeps."""
    value.name = name
    value.meta[NAMED] = True


class GraphEditor:
    """Edits one graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph

    def constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        """Return the initializer `name`, making it if there is none."""
        if name not in self.graph.initializers:
            tensor = ir.tensor(array, name=name)
            value = ir.Value(
                name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            self.graph.register_initializer(value)
        return self.graph.initializers[name]

    def fresh(self, name: str, array: NDArray[Any]) -> ir.Value:
        """Return a new initializer; one that torch wrote under the same name stays apart until it is unused."""
        old = self.graph.initializers.pop(name, None)
        if old is not None:
            old.name = f"{name}_captured"
            self.graph.initializers[old.name] = old
        return self.constant(name, array)

    def insert(
        self, before: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], name: str, **attributes: Any
    ) -> ir.Value:
        """Insert a node before another and return its output, called `name`."""
        return self.insert_node(before, ir.node(op_type, list(inputs), attributes=attributes), name)

    def insert_node(self, before: ir.Node, node: ir.Node, name: str) -> ir.Value:
        """Insert `node` before another and return its output, called `name`."""
        name_value(node.outputs[0], name)
        self.graph.insert_before(before, node)
        return node.outputs[0]

    def replace(self, node: ir.Node, value: ir.Value) -> None:
        """Use `value` in place of the only output of `node`, and remove the node."""
        if value.shape is None:
            value.shape, value.type = node.outputs[0].shape, node.outputs[0].type
        replace_value(node.outputs[0], value)
        self.graph.remove(node, safe=True)


def replace_value(old: ir.Value, value: ir.Value) -> None:
    """Use `value` in place of another; an output of the graph keeps its name."""
    name = old.name
    is_output = old.is_graph_output()
    convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
    if is_output and name is not None:
        old.name = f"{name}_captured"
        name_value(value, name)


def only_user(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads `value`, None if there are others or it is an output of the graph."""
    users = tuple(value.uses())
    return users[0].node if len(users) == 1 and not value.is_graph_output() else None


def constant_of(value: ir.Value | None) -> NDArray[Any] | None:
    """Return the numbers of a constant, None if `value` is not constant."""
    return None if value is None or value.const_value is None else np.asarray(value.const_value.numpy())
