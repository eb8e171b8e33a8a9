"""Model-local functions: standard operators, with parameters that are attributes of the calling node."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

FUNCTION_DOMAIN = "csqtool"


class FunctionBody:
    """Builds a function, node by node; its inputs are named at the start."""

    def __init__(self, *inputs: str) -> None:
        self.inputs = [ir.Value(name=name) for name in inputs]
        self._nodes: list[ir.Node] = []
        self._attributes: dict[str, ir.Attr] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def attribute(self, as_: str, name: str, kind: ir.AttributeType) -> ir.Value:
        """Return the value of the calling node's attribute `name`, as attribute `as_` of a Constant."""
        self._attributes[name] = ir.Attr(name, kind, None)
        return self._add(ir.Node("", "Constant", [], [ir.RefAttr(as_, name, kind)]))

    def constant(self, array: Any) -> ir.Value:
        """Return a constant; equal ones are stored once."""
        array = np.asarray(array)
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._constants:
            attributes: dict[str, Any] = {"value": ir.tensor(array)}
            if array.dtype == np.int64 and array.ndim < 2:  # shorter: no tensor around it
                attributes = {"value_ints" if array.ndim else "value_int": array.tolist()}
            self._constants[key] = self._add(ir.node("Constant", [], attributes))
        return self._constants[key]

    def add(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """Add a standard operator and return its output."""
        return self._add(ir.node(op_type, list(inputs), attributes))

    def _add(self, node: ir.Node) -> ir.Value:
        node.outputs[0].name = f"v{len(self._nodes)}"
        self._nodes.append(node)
        return node.outputs[0]

    def function(self, name: str, output: ir.Value) -> ir.Function:
        """Return the function; its opset is a placeholder until the model's is known."""
        graph = ir.Graph(self.inputs, [output], nodes=self._nodes, opset_imports={"": 1})
        for node in self._nodes:
            node.name = None  # the graph named the nodes; names only take space
        return ir.Function(FUNCTION_DOMAIN, name, graph=graph, attributes=list(self._attributes.values()))
