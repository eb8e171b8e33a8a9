"""Integers of any width as a packed stream, and the standard operators that unpack it.

n integers of k bits are spread over G = ⌈n / 8⌉ lanes: integer j·G + g is field j of lane g. A lane is k bytes, and
its field j occupies bits [j·k, (j+1)·k), lowest bit first. The stream holds byte 0 of all lanes, then byte 1 of all
lanes, and so on. So each step of unpacking is one operation on long rows of bytes. A field holds q + 2^(k−1), or an
index into a table of the layer's levels where that takes fewer bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from csqtool.quantized_model import IntegerArray, smallest_dtype, twos_complement_bits
from exporters.onnx.functions import FunctionBody

FUNCTION_OPSET = 18  # BitwiseAnd and BitwiseOr
FIELDS = 8  # in a lane: for any k they fill whole bytes
TABLE_OVERHEAD_BYTES = 96  # what a table costs in addition to its values: its name and a function of its own


@dataclass(frozen=True)
class PackedWeight:
    """Integers as a stream.

    Attributes:
        stream: uint8 [bits·lanes].
        bits: width of a field.
        shape: of the integers.
        levels: the table of levels that fields index, None where they hold q + 2^(bits − 1).
        dtype: of the integers.
    """

    stream: NDArray[np.uint8]
    bits: int
    shape: tuple[int, ...]
    levels: IntegerArray | None
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"packed {self.bits}" + (" (levels)" if self.levels is not None else "")

    def attributes(self) -> list[ir.Attr]:
        """Return the attributes of its node that give the integers."""
        levels = [] if self.levels is None else [ir.AttrTensor("levels", ir.tensor(self.levels))]
        return [ir.AttrTensor("stream", ir.tensor(self.stream)), ir.AttrInt64s("bits", [self.bits]), *levels]

    @property
    def aligned(self) -> bool:
        """Whether each field lies within one byte."""
        return FIELDS % self.bits == 0

    @property
    def size_bytes(self) -> int:
        """Bytes of the numbers in the file, and of a table's name."""
        return self.stream.nbytes + (0 if self.levels is None else self.levels.nbytes + TABLE_OVERHEAD_BYTES)

    @property
    def padded(self) -> bool:
        """Whether the last fields hold no integer, because n is no multiple of eight."""
        return int(np.prod(self.shape)) % FIELDS != 0


def pack_weight(q: IntegerArray) -> PackedWeight:
    """Pack integers at the fewest bits: those of two's complement, or those of an index into their levels.

    At eight bits a stream saves nothing, and its offset does not fit int8: callers store such integers as they are.

    Example:
        Ten integers of three bits in two lanes of three bytes:

        >>> packed = pack_weight(np.array([[-4, 3, 0, 1, -1], [2, -3, 0, 0, -2]], np.int8))
        >>> packed.bits, packed.stream.shape, packed.padded
        (3, (6,), True)
        >>> lane = packed.stream.reshape(3, 2)[:, 0]  # every second integer: −4, 0, −1, −3, 0
        >>> fields = sum(int(byte) << 8 * i for i, byte in enumerate(lane))
        >>> [(fields >> 3 * j & 7) - 4 for j in range(5)]
        [-4, 0, -1, -3, 0]
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


def unpacked(body: FunctionBody, shape: ir.Value, *, wide: bool, levels: bool, aligned: bool, padded: bool) -> ir.Value:
    """Add the operators that unpack the attributes `stream`, `bits` and, with a table, `levels` of the calling node.

    Args:
        body: of the function.
        shape: of the integers.
        wide: the integers are int16.
        levels: fields index a table.
        aligned: in all streams, each field lies within one byte.
        padded: in some stream, the last fields hold no integer.
    """
    stream = body.attribute("value", "stream", ir.AttributeType.TENSOR)
    bits = body.attribute("value_ints", "bits", ir.AttributeType.INTS)  # one number, in an axis of length one
    # A field of nine bits spans more than one byte.
    nine = wide and not levels
    unit = ir.DataType.UINT32 if nine else ir.DataType.UINT8
    eight = body.constant(np.int64(8))
    start = body.add("Mul", body.constant(np.arange(FIELDS, dtype=np.int64)), bits)  # a field's first bit
    row, offset = body.add("Div", start, eight), body.add("Mod", start, eight)
    column = body.constant(np.array([FIELDS, 1]))
    right = body.add("Cast", body.add("Reshape", offset, column), to=unit)
    flat = body.constant(np.array([-1]))
    lanes = body.add("Concat", bits, flat, axis=0)
    rows = body.add("Reshape", stream, lanes)  # (byte of a lane, lane)
    if nine:
        rows = body.add("Cast", rows, to=unit)
    fields = body.add("BitShift", body.add("Gather", rows, row), right, direction="RIGHT")
    if not aligned:
        # No field ends after the last byte of its lane, so it does not matter that row 0 follows the last row.
        following = body.add("Mod", body.add("Add", row, body.constant(np.int64(1))), bits)
        left = body.add("Sub", body.constant(np.asarray(8, unit.numpy())), right)
        high = body.add("BitShift", body.add("Gather", rows, following), left, direction="LEFT")
        fields = body.add("BitwiseOr", fields, high)
    largest = body.constant(np.asarray(511, np.uint32) if nine else np.asarray(255, np.uint8))
    limit = body.constant(np.int64(9 if nine else 8))
    unused = body.add("Cast", body.add("Sub", limit, bits), to=unit)
    mask = body.add("BitShift", largest, unused, direction="RIGHT")
    fields = body.add("BitwiseAnd", fields, mask)  # (field, lane)
    if padded:
        count = body.add("ReduceProd", shape, keepdims=1)
        zero = body.constant(np.array([0]))
        fields = body.add("Slice", body.add("Reshape", fields, flat), zero, count)
    fields = body.add("Reshape", fields, shape)
    if levels:
        table = body.attribute("value", "levels", ir.AttributeType.TENSOR)
        return body.add("Gather", table, body.add("Cast", fields, to=ir.DataType.INT32))
    # 2^(bits − 1) = mask − ⌊mask / 2⌋; int16 is subtracted in int32: not every runtime has a kernel for it.
    signed = ir.DataType.INT32 if nine else ir.DataType.INT8
    one_bit = body.constant(np.asarray(1, np.uint32 if nine else np.uint8))
    lower = body.add("BitShift", mask, one_bit, direction="RIGHT")
    offset = body.add("Cast", body.add("BitwiseXor", mask, lower), to=signed)
    integers = body.add("Sub", body.add("Cast", fields, to=signed), offset)
    return body.add("Cast", integers, to=ir.DataType.INT16) if nine else integers
