"""Skewed integers near their entropy: a prefix code that standard operators decode for all integers at once.

A layer's integers are taken in groups of 1 to 6, and each distinct group is a symbol, the layer's most frequent first.
Symbols are in classes: class c has 2^widths[c] of them, one after the other. One code has the groups of several
layers, one layer after the other: its prefix has for each group as many zeros as the number of its class, and a one;
its suffix has the number of each group's symbol within the class, in widths[c] bits, lowest first. Both are strings of
bits, of which bit i is bit i mod 8 of byte ⌊i / 8⌋.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from csqtool.quantized_model import IntegerArray
from exporters.onnx.functions import FunctionBody

GROUPS = (1, 2, 3, 4, 6)  # integers of a symbol
MOST_SYMBOLS = 4096  # a longer table of groups takes more than it saves
WIDEST = 8  # bits of a symbol within its class: they begin in one byte and end in it or the next
MOST_SPACE = 1 << 20  # groups that there could be, up to which they are counted without sorting
ROUNDS = 4  # of choosing classes for the groups, and groups for the classes
NODE_BYTES = 24  # what a layer's node takes beyond one with a packed stream
SYMBOLS = "Symbols"  # the function that decodes

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Code:
    """The symbols of several layers.

    Attributes:
        prefix: uint8 [⌊bits / 8⌋ + 1, 1], the class of each group; the last bits are zero.
        suffix: uint8 [⌊bits / 8⌋ + 2, 1], the symbol of each group within its class; the last bits are zero.
        widths: bits of a symbol within each class.
    """

    prefix: NDArray[np.uint8]
    suffix: NDArray[np.uint8]
    widths: tuple[int, ...]

    def attributes(self) -> list[ir.Attr]:
        """Return the attributes of its node."""
        tensors = [ir.AttrTensor(name, ir.tensor(getattr(self, name))) for name in ("prefix", "suffix")]
        return [*tensors, ir.AttrInt64s("widths", self.widths)]


@dataclass(frozen=True)
class CodedWeight:
    """A layer's integers as symbols of a code.

    Attributes:
        code: of this layer and others.
        begin, end: the layer's first symbol in the code, and the one after its last.
        levels: the integers of each symbol, [symbols, group].
        bits: what the layer takes in prefix and suffix.
        shape: of the integers.
        dtype: of the integers.
    """

    code: Code
    begin: int
    end: int
    levels: IntegerArray
    bits: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"coded {8 * self.size_bytes / np.prod(self.shape):.2f}"

    def attributes(self) -> list[ir.Attr]:
        """Return the attributes of its node that give the integers."""
        levels = ir.AttrTensor("levels", ir.tensor(self.levels))
        return [levels, ir.AttrInt64s("begin", [self.begin]), ir.AttrInt64s("end", [self.end])]

    @property
    def padded(self) -> bool:
        """Whether the last group is filled up with zeros."""
        return bool(np.prod(self.shape) % self.levels.shape[1])

    @property
    def size_bytes(self) -> int:
        """Bytes of the numbers in the file, and what the node takes beyond one with a packed stream."""
        return -(-self.bits // 8) + self.levels.nbytes + NODE_BYTES


def code_weights(layers: Sequence[IntegerArray]) -> list[CodedWeight]:
    """Return the smallest code of some layers' integers that is found.

    Example:
        >>> (coded,) = code_weights([np.array([[0, 0, 3, 0, 1, 0, 0, -1], [0, 1, 2, -1, 0, -2, 0, 0]], np.int8)])
        >>> coded.levels.tolist(), coded.code.widths  # sixteen single integers; a table of larger groups takes more
        ([[0], [-1], [1], [-2], [2], [3]], (0, 1, 0, 0, 0))
        >>> "".join(str(bit) for bit in np.unpackbits(coded.code.prefix.reshape(-1), bitorder="little"))
        '11000011011101101000101100111000'
        >>> coded.code.suffix.reshape(-1).tolist()  # class 1 is −1 (a zero) and 1 (a one): 1, −1, 1, −1
        [5, 0]
    """
    choices = [_choices(q) for q in layers]
    picked = [min(some, key=lambda grouped: grouped.entropy + 8 * grouped.levels.nbytes) for some in choices]
    widths = _cheapest_classes(_summed(picked))
    for _ in range(ROUNDS):
        picked = [min(some, key=lambda grouped: grouped.cost(widths) + 8 * grouped.levels.nbytes) for some in choices]
        if (better := _cheapest_classes(_summed(picked))) == widths:
            break
        widths = better
    symbols = np.concatenate([grouped.symbols for grouped in picked])
    first = np.cumsum([0, *(1 << width for width in widths[:-1])])
    classes = np.searchsorted(first, symbols, "right") - 1
    width = np.array(widths)[classes]
    ends = np.cumsum(width)
    code = Code(
        _bits_at(np.cumsum(classes + 1) - 1).reshape(-1, 1),
        _low_bits(symbols - first[classes], width, ends - width, int(ends[-1])).reshape(-1, 1),
        widths,
    )
    after = np.cumsum([grouped.symbols.size for grouped in picked]).tolist()
    return [
        CodedWeight(code, end - grouped.symbols.size, end, grouped.levels, grouped.cost(widths), q.shape, q.dtype)
        for q, grouped, end in zip(layers, picked, after, strict=True)
    ]


def entropy_bytes(q: IntegerArray) -> float:
    """Return the bytes that single integers take at their entropy."""
    return _Grouped.of(q, 1).entropy / 8


@dataclass(frozen=True)
class _Grouped:
    """Groups of integers as symbols, the most frequent first.

    Attributes:
        symbols: of each group.
        counts: of each symbol.
        levels: the integers of each symbol, [symbols, size].
    """

    symbols: Integers
    counts: Integers
    levels: IntegerArray

    @classmethod
    def of(cls, q: IntegerArray, size: int) -> _Grouped:
        flat = np.zeros(-(-q.size // size) * size, np.int64)
        flat[: q.size] = q.reshape(-1)
        low, base = int(flat.min()), int(flat.max()) - int(flat.min()) + 1
        places = base ** np.arange(size, dtype=np.int64)  # at most 512 levels: 2^54
        numbers = (flat.reshape(-1, size) - low) @ places
        if base**size <= MOST_SPACE:
            counts = np.bincount(numbers)
            found = np.flatnonzero(counts)
            counts, inverse = counts[found], (np.cumsum(counts > 0) - 1)[numbers]
        else:
            found, inverse, counts = np.unique(numbers, return_inverse=True, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        levels = found[order, None] // places % base + low
        return cls(
            rank[inverse], counts[order], levels.astype(np.int8) if q.dtype == np.int8 else levels.astype(np.int16)
        )

    @property
    def entropy(self) -> float:
        """Bits that no prefix code of these symbols falls below."""
        return float(-(self.counts * np.log2(self.counts / self.counts.sum())).sum())

    def cost(self, widths: Sequence[int]) -> int:
        """Return the bits in prefix and suffix with these classes; what they lack costs as much as the longest."""
        lengths = np.repeat(np.arange(len(widths)) + 1 + np.array(widths), 1 << np.array(widths))
        known = min(len(lengths), len(self.counts))
        return int(self.counts[:known] @ lengths[:known] + self.counts[known:].sum() * int(lengths.max()))


def _choices(q: IntegerArray) -> list[_Grouped]:
    """Return the layer's integers in groups of each size that may take the fewest bytes."""
    found = [_Grouped.of(q, 1)]  # at most 512 levels
    for size in GROUPS[1:]:
        grouped = _Grouped.of(q, size)
        if len(grouped.counts) <= MOST_SYMBOLS and grouped.entropy / 8 + grouped.levels.nbytes < 1.1 * min(
            other.entropy / 8 + other.levels.nbytes for other in found
        ):
            found.append(grouped)
    return found


def _summed(layers: Sequence[_Grouped]) -> Integers:
    """Return how often the layers' symbols of each number occur."""
    counts = np.zeros(max(len(grouped.counts) for grouped in layers), np.int64)
    for grouped in layers:
        counts[: len(grouped.counts)] += grouped.counts
    return counts


def _cheapest_classes(counts: Integers) -> tuple[int, ...]:
    """Return the widths of the classes that take the fewest bits, for symbols that occur so often.

    From the last symbol to the first: whatever precedes it, what follows symbol s is coded best in the same way.
    """
    symbols = len(counts)
    before = [0, *np.cumsum(counts).tolist()]
    bits, chosen = [0] * (symbols + 1), [0] * symbols
    for symbol in range(symbols - 1, -1, -1):
        costs = []
        for width in range(WIDEST + 1):
            end = min(symbol + (1 << width), symbols)
            costs.append(width * (before[end] - before[symbol]) + bits[end])
        width = min(range(WIDEST + 1), key=costs.__getitem__)
        # A bit of the prefix for each group of this class and of those that follow.
        bits[symbol], chosen[symbol] = before[symbols] - before[symbol] + costs[width], width
    widths, symbol = [], 0
    while symbol < symbols:
        widths.append(chosen[symbol])
        symbol += 1 << chosen[symbol]
    return tuple(widths)


def _bits_at(places: Integers) -> NDArray[np.uint8]:
    """Return the string of bits that has ones at ascending places, and a zero after them."""
    bits = np.zeros(int(places[-1]) + 2, np.uint8)
    bits[places] = 1
    return np.packbits(bits, bitorder="little")


def _low_bits(values: Integers, widths: Integers, starts: Integers, count: int) -> NDArray[np.uint8]:
    """Return a string of `count` bits in which each value's lowest bits stand at its start."""
    bits = np.zeros(8 * (count // 8 + 2), np.uint8)
    for j in range(WIDEST):
        has = widths > j
        bits[starts[has] + j] = values[has] >> j & 1
    return np.packbits(bits, bitorder="little")


def symbols_function() -> ir.Function:
    """Return the function that decodes: no inputs; attributes `prefix`, `suffix` and `widths`.

    onnxruntime computes all of its operators when it loads a file. It does not with NonZero and Compress.
    """
    body = FunctionBody()
    prefix, suffix = (body.attribute("value", name, ir.AttributeType.TENSOR) for name in ("prefix", "suffix"))
    widths = body.add("Cast", body.attribute("value_ints", "widths", ir.AttributeType.INTS), to=ir.DataType.INT32)
    flat, axis = body.constant(np.array([-1])), body.constant(np.int64(0))
    begin, second, end = (body.constant(np.array([place])) for place in (0, 1, 2**62))
    one = body.constant(np.int32(1))
    right = body.constant(np.arange(8, dtype=np.uint8))
    # Each bit of the prefix belongs to a group: the number of ones before it. Its zeros are the group's class.
    bits = body.add("BitwiseAnd", body.add("BitShift", prefix, right, direction="RIGHT"), body.constant(np.uint8(1)))
    ones = body.add("Reshape", body.add("Cast", bits, to=ir.DataType.INT32), flat)
    group = body.add("CumSum", ones, axis, exclusive=1)
    nothing, zeros = body.add("Sub", ones, ones), body.add("Sub", one, ones)
    classes = body.add("ScatterElements", nothing, group, zeros, reduction="add")
    count = body.add("Cast", body.add("ReduceSum", ones, keepdims=1), to=ir.DataType.INT64)
    classes = body.add("Slice", classes, begin, count)  # without the zeros at the end
    # The eight bits of the suffix from each place on, of which a symbol takes the lowest.
    low, high = body.add("Slice", suffix, begin, flat), body.add("Slice", suffix, second, end)
    low = body.add("BitShift", low, right, direction="RIGHT")
    high = body.add("BitShift", high, body.constant(8 - np.arange(8, dtype=np.uint8)), direction="LEFT")
    windows = body.add("Reshape", body.add("BitwiseOr", low, high), flat)
    start = body.add("CumSum", body.add("Gather", widths, classes), axis, exclusive=1)
    window = body.add("Cast", body.add("Gather", windows, start), to=ir.DataType.INT32)
    masks = body.add("Gather", body.constant(2 ** np.arange(WIDEST + 1, dtype=np.int32) - np.int32(1)), widths)
    within = body.add("BitwiseAnd", window, body.add("Gather", masks, classes))
    first = body.add("CumSum", body.add("Add", masks, one), axis, exclusive=1)
    return body.function(SYMBOLS, body.add("Add", body.add("Gather", first, classes), within))


def decoded(body: FunctionBody, shape: ir.Value, *, padded: bool) -> ir.Value:
    """Add the operators that give a layer's integers: its part of the symbols, looked up in the attribute `levels`."""
    begin, end = (body.attribute("value_ints", name, ir.AttributeType.INTS) for name in ("begin", "end"))
    levels = body.attribute("value", "levels", ir.AttributeType.TENSOR)
    integers = body.add("Gather", levels, body.add("Slice", body.inputs[0], begin, end))
    if padded:
        flat, zero = body.constant(np.array([-1])), body.constant(np.array([0]))
        count = body.add("ReduceProd", shape, keepdims=1)
        integers = body.add("Slice", body.add("Reshape", integers, flat), zero, count)
    return body.add("Reshape", integers, shape)
