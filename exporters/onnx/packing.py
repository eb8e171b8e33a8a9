"""Integers of any width in an ONNX file: a packed stream, and a function of standard operators that unpacks it.

Of n integers, integer j·G + g with G = ⌈n / 8⌉ is field j of lane g. A lane is k bytes: field j of it stands in
bits [j·k, (j+1)·k), lowest bit first. The stream holds byte 0 of all lanes, then byte 1 of all lanes, and so
on, so that every step of unpacking is one operation over long rows of bytes. A field holds q − offset with the
offset of two's complement, or an index into a table of the layer's levels where that takes fewer bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from csqtool.quantized_model import IntegerArray, smallest_dtype, twos_complement_bits

FUNCTION_DOMAIN = "csqtool"
FUNCTION_OPSET = 18  # BitwiseAnd and BitwiseOr
FIELDS = 8  # of a lane: whatever k is, they fill whole bytes
TABLE_OVERHEAD_BYTES = 96  # a table's name and its own function, beside its values


@dataclass(frozen=True)
class PackedWeight:
    """Integers as a stream.

    Attributes:
        stream: uint8 [bits·lanes].
        bits: width of a field.
        shape: of the integers.
        levels: the table of levels that fields index, None where they are q − offset.
        dtype: of the integers.
    """

    stream: NDArray[np.uint8]
    bits: int
    shape: tuple[int, ...]
    levels: IntegerArray | None
    dtype: np.dtype[Any]

    @property
    def parameter(self) -> NDArray[Any]:
        """The table of levels, or what a field adds to its integer: a scalar, in the type it is subtracted in."""
        if self.levels is not None:
            return self.levels
        return np.asarray(1 << (self.bits - 1), np.int32 if self.bits > 8 else np.int8)

    @property
    def aligned(self) -> bool:
        """Whether no field reaches over two bytes."""
        return FIELDS % self.bits == 0

    @property
    def function(self) -> str:
        """Name of the function that unpacks it."""
        padded = int(np.prod(self.shape)) % FIELDS != 0
        kind = "Int16" if self.bits > 8 else "Aligned" if self.aligned else ""
        return f"Unpack{kind}{'Levels' if self.levels is not None else ''}{'Padded' if padded else ''}"


def pack_weight(q: IntegerArray) -> PackedWeight:
    """Pack integers at the fewest bits: those of two's complement, or of an index into their levels.

    At eight bits a stream gains nothing and has no offset in int8: such integers are stored as they are.
    """
    bits = twos_complement_bits(q)
    levels: IntegerArray = smallest_dtype(np.unique(q)) if q.dtype == np.int8 else np.unique(q).astype(np.int16)
    index_bits = max(1, int(len(levels) - 1).bit_length())
    saved = q.size * (bits - index_bits) // 8
    if index_bits <= 8 and saved > levels.nbytes + TABLE_OVERHEAD_BYTES:
        return PackedWeight(
            pack_fields(np.searchsorted(levels, q).reshape(-1), index_bits), index_bits, q.shape, levels, q.dtype
        )
    fields = q.reshape(-1).astype(np.int64) + (1 << (bits - 1))
    return PackedWeight(pack_fields(fields, bits), bits, q.shape, None, q.dtype)


def pack_fields(fields: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Return the stream of non-negative `fields` [n], each below 2^bits."""
    lanes = -(-fields.size // FIELDS)
    padded = np.zeros(FIELDS * lanes, np.uint16)
    padded[: fields.size] = fields
    rows = padded.reshape(FIELDS, 1, lanes)
    planes = (rows >> np.arange(bits, dtype=np.uint16).reshape(1, bits, 1)) & 1  # (field, bit, lane)
    # (field·bits + bit, lane) → (byte of a lane, lane)
    return np.packbits(planes.astype(np.uint8).reshape(FIELDS * bits, lanes), axis=0, bitorder="little").reshape(-1)


def unpack_function(packed: PackedWeight) -> ir.Function:
    """Return the model-local function that unpacks `packed`, and others of its kind.

    Its inputs are the stream and the offset (or the table of levels); its attributes `bits` and `shape`.
    """
    body = _Body()
    shape = body.attribute("value_ints", "shape", ir.AttributeType.INTS)
    bits = body.attribute("value_int", "bits", ir.AttributeType.INT)
    unit = ir.DataType.UINT32 if packed.bits > 8 else ir.DataType.UINT8
    eight = body.constant(np.int64(8))
    start = body.add("Mul", body.constant(np.arange(FIELDS, dtype=np.int64)), bits)  # a field's first bit
    row, offset = body.add("Div", start, eight), body.add("Mod", start, eight)
    column = body.constant(np.array([FIELDS, 1]))
    right = body.add("Cast", body.add("Reshape", offset, column), to=unit)
    flat = body.constant(np.array([-1]))
    lanes = body.add("Concat", body.add("Reshape", bits, body.constant(np.array([1]))), flat, axis=0)
    rows = body.add("Reshape", body.stream, lanes)  # (byte of a lane, lane)
    if packed.bits > 8:
        rows = body.add("Cast", rows, to=unit)  # a field reaches over a whole byte and one bit
    both = body.add("BitShift", body.add("Gather", rows, row, axis=0), right, direction="RIGHT")
    if not packed.aligned:
        # The last byte of a lane has none behind it, and no field that would reach there.
        one = body.constant(np.int64(1))
        following = body.add("Min", body.add("Add", row, one), body.add("Sub", bits, one))
        left = body.add("Cast", body.add("Reshape", body.add("Sub", eight, offset), column), to=unit)
        high = body.add("BitShift", body.add("Gather", rows, following, axis=0), left, direction="LEFT")
        both = body.add("BitwiseOr", both, high)
    largest = body.constant(np.asarray(511, np.uint32) if packed.bits > 8 else np.asarray(255, np.uint8))
    limit = body.constant(np.int64(9 if packed.bits > 8 else 8))
    mask = body.add("BitShift", largest, body.add("Cast", body.add("Sub", limit, bits), to=unit), direction="RIGHT")
    fields = body.add("BitwiseAnd", both, mask)  # (field, lane)
    if int(np.prod(packed.shape)) % FIELDS:
        count = body.add("ReduceProd", shape, keepdims=1)
        zero = body.constant(np.array([0]))
        fields = body.add("Slice", body.add("Reshape", fields, flat), zero, count)
    fields = body.add("Reshape", fields, shape)
    if packed.levels is not None:
        body.add("Gather", body.parameter, body.add("Cast", fields, to=ir.DataType.INT32), axis=0)
    else:
        # int16 is subtracted in int32: not every runtime has a kernel for it.
        integers = body.add("Cast", fields, to=ir.DataType.INT32 if packed.bits > 8 else ir.DataType.INT8)
        difference = body.add("Sub", integers, body.parameter)
        if packed.bits > 8:
            body.add("Cast", difference, to=ir.DataType.INT16)
    return body.function(packed.function)


class _Body:
    """A function body in the making."""

    def __init__(self) -> None:
        self.stream, self.parameter = ir.Value(name="stream"), ir.Value(name="parameter")
        self._nodes: list[ir.Node] = []
        self._attributes: list[ir.Attr] = []

    def attribute(self, as_: str, name: str, kind: ir.AttributeType) -> ir.Value:
        self._attributes.append(ir.Attr(name, kind, None))
        return self._add(ir.Node("", "Constant", [], [ir.RefAttr(as_, name, kind)]))

    def constant(self, array: Any) -> ir.Value:
        return self._add(ir.node("Constant", [], {"value": ir.tensor(np.asarray(array))}))

    def add(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return self._add(ir.node(op_type, list(inputs), attributes))

    def _add(self, node: ir.Node) -> ir.Value:
        node.outputs[0].name = f"v{len(self._nodes)}"
        self._nodes.append(node)
        return node.outputs[0]

    def function(self, name: str) -> ir.Function:
        self._nodes[-1].outputs[0].name = "integers"
        graph = ir.Graph(
            [self.stream, self.parameter],
            [self._nodes[-1].outputs[0]],
            nodes=self._nodes,
            opset_imports={"": FUNCTION_OPSET},
        )
        return ir.Function(FUNCTION_DOMAIN, name, graph=graph, attributes=self._attributes)
