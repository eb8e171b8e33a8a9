"""From an ONNX graph to the number of each of its values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from csqtool.onnx_isolated import inferred
from csqtool.verifying.stored_weights import StoredWeights
from csqtool.verifying.term_rules import simplified
from csqtool.verifying.terms import NOTHING, Number, Term, Terms

GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
# Operators that constants are computed with: always the same result, no larger than what they read, exact.
FOLDED = frozenset({
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "Concat", "CumSum",
    "DequantizeLinear", "Div", "Gather", "Identity", "Mod", "Mul", "ReduceProd", "ReduceSum", "Reshape",
    "ScatterElements", "Slice", "Squeeze", "Sub", "Transpose", "Unsqueeze",
})  # fmt: skip
NARROW = frozenset({onnx.TensorProto.INT8, onnx.TensorProto.INT16, onnx.TensorProto.INT4, onnx.TensorProto.INT2})
# Operators whose result has as many axes as their operands: known also where inference stops at sizes that do not fit.
AXES_KEPT = frozenset({
    "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "ConvTranspose", "DequantizeLinear",
    "HardSwish", "MaxPool", "Mul", "QuantizeLinear", "Relu", "Sigmoid", "Softmax", "Sub",
})  # fmt: skip
CHANGED_MEANING = ("GroupNormalization",)  # of the same name and inputs, at another opset


class GraphValues:
    """The values of one graph without functions and Constant nodes (`csqtool.onnx_file.flattened`).

    Attributes:
        numbers: of each value, by name.
        makers: the node that makes each value.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        terms: Terms,
        *,
        opset: int,
        integers: Iterable[str] = (),
        equivalent: Mapping[bytes, NDArray[Any]] | None = None,
    ) -> None:
        """Number all values.

        Args:
            proto: the graph.
            terms: shared with the graph that it is compared with.
            opset: whose defaults attributes have.
            integers: constants that count as coming from stored integers.
            equivalent: bytes of a constant, to the constant that it is taken for.
        """
        self._proto = proto
        self._terms = terms
        self._opset = opset
        self._given = set(integers)
        self._equivalent = equivalent or {}
        self._stored = StoredWeights(proto)
        self._tensors = {t.name: t for t in proto.graph.initializer}
        self._types = _inferred(proto)
        self.makers = {output: node for node in proto.graph.node for output in node.output if output}
        self._constant = self._constants()
        self.numbers: dict[str, Number] = {"": NOTHING}
        for value in proto.graph.input:
            self._set(value.name, terms.number(Term("input", (("name", value.name),))))
        for node in proto.graph.node:
            if not all(output in self._constant for output in node.output):
                self._add(node)

    def number(self, name: str) -> Number:
        """Return the number of a value; of one that nothing makes, a number of its own."""
        if name not in self.numbers:
            if name in self._constant:
                self._set(name, self._constant_number(name))
            else:
                self.numbers[name] = self._terms.number(Term("unknown", (("name", name),)))
        return self.numbers[name]

    def _constants(self) -> set[str]:
        found = set(self._tensors) - {value.name for value in self._proto.graph.input}
        for node in self._proto.graph.node:
            if node.op_type in FOLDED and not node.domain and len(node.output) == 1 and node.input \
                    and all(not name or name in found for name in node.input):  # fmt: skip
                found.add(node.output[0])
        return found

    def _constant_number(self, name: str) -> Number:
        try:
            values = self._stored.value(name)
        except ValueError as error:
            return self._terms.number(Term("unknown", (("name", name), ("why", str(error)))))
        if values.dtype == np.float32 and (equal := self._equivalent.get(values.tobytes())) is not None \
                and equal.shape == values.shape:  # fmt: skip
            values = equal
        return self._terms.constant(values, integers=self._from_integers(name))

    def _from_integers(self, name: str) -> bool:
        """Tell whether a float constant is made of stored integers of a weight's types."""
        while name in self.makers:
            node = self.makers[name]
            if node.op_type == "DequantizeLinear" or (node.op_type == "Cast" and self._types.get(name, (0,))[0] == 1):
                return self._types.get(node.input[0], (0,))[0] in NARROW
            if node.op_type == "Mul":
                casts = [i for i in node.input if i in self.makers and self.makers[i].op_type == "Cast"]
                name = casts[0] if casts else node.input[0]
            elif node.op_type == "Concat":
                return all(map(self._from_integers, node.input))  # the gates of a recurrent layer
            elif node.op_type in ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Gather", "Slice"):
                name = node.input[0]
            else:
                return False
        return name in self._given

    def _set(self, name: str, number: Number) -> None:
        self.numbers[name] = number
        rank = self._types.get(name, (0, None))[1]
        if rank is not None:
            self._terms.ranks.setdefault(number, rank)

    def _add(self, node: onnx.NodeProto) -> None:
        attributes = self._attributes(node)
        operator = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        inputs = [self.number(name) for name in node.input]
        while inputs and inputs[-1] == NOTHING:
            inputs.pop()  # left out at the end
        if operator in ("QuantizeLinear", "DequantizeLinear") and len(inputs) == 2:
            inputs.append(self._terms.constant(np.asarray(0, np.uint8)))  # the default, where that is the type
        term = Term(operator, attributes, tuple(inputs))
        if len(node.output) == 1:
            self._set(node.output[0], simplified(self._terms, term))
            if operator in AXES_KEPT and (ranks := [self._terms.ranks.get(number) for number in inputs[:2]]):
                known = [rank for rank in ranks if rank is not None]
                if len(known) == len(ranks):
                    self._terms.ranks.setdefault(self.numbers[node.output[0]], max(known))
            return
        whole = simplified(self._terms, term)
        for position, output in enumerate(node.output):
            if output:
                passed_on = node.op_type == "Dropout" and whole in inputs and not position
                number = whole if passed_on else self._terms.number(Term("result", (("of", position),), (whole,)))
                self._set(output, number)

    def _attributes(self, node: onnx.NodeProto) -> tuple[tuple[str, Any], ...]:
        """Return all attributes, defaults included, in a form that can be compared."""
        found: dict[str, Any] = {}
        try:
            schema = onnx.defs.get_schema(node.op_type, self._opset, "" if node.domain == "ai.onnx" else node.domain)
        except onnx.defs.SchemaError:
            schema = None
        if schema is not None:
            for name, attribute in schema.attributes.items():
                if attribute.default_value.type:
                    found[name] = _plain(helper.get_attribute_value(attribute.default_value))
            if node.op_type in CHANGED_MEANING:
                found["since"] = schema.since_version
        for given in node.attribute:
            if given.type in GRAPHS:
                found[given.name] = ("graph", given.SerializeToString(deterministic=True))
            else:
                found[given.name] = _plain(helper.get_attribute_value(given))
        return tuple(sorted(found.items()))


def _plain(value: Any) -> Any:
    """Return an attribute's value as something that can be hashed."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, onnx.TensorProto):
        array = onnx.numpy_helper.to_array(value)
        return str(array.dtype), array.shape, array.tobytes()
    if hasattr(value, "SerializeToString"):
        return value.SerializeToString(deterministic=True)
    if isinstance(value, float):
        return float(np.float32(value))
    if isinstance(value, str | int):
        return value
    return tuple(_plain(item) for item in value)


def _inferred(proto: onnx.ModelProto) -> dict[str, tuple[int, int | None]]:
    """Return the element type and the number of axes of each value, where inference finds them."""
    found: dict[str, tuple[int, int | None]] = {t.name: (t.data_type, len(t.dims)) for t in proto.graph.initializer}
    graph = inferred(proto).graph
    for value in (*graph.value_info, *graph.input, *graph.output):
        tensor = value.type.tensor_type
        found[value.name] = (tensor.elem_type, len(tensor.shape.dim) if tensor.HasField("shape") else None)
    return found
