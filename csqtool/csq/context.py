"""Adaptive binary coding with contexts: what the neighbours in a kernel tell about a weight saves a tenth of its bits.

A value is a few yes-or-no decisions: zero or not, whether its magnitude is above 1, above 2, …, and its sign. Each
decision has a context, which follows from the values to its left and above it in the same kernel, and every context
learns its own probability while it codes. The coder is that of `rans` with one lane and the two symbols yes and no.
Binary decisions with such contexts are the idea of DeepCABAC (Wiedemann et al., 2020) and ISO/IEC 15938-17.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.csq.rans import LOWEST_STATE, SCALE_BITS, SLOTS, StreamError

MAX_ELEMENTS = 1 << 24  # in one file: decoded one after the other, a pass of Python takes half a minute
STATE_BYTES = 4
_BLOCK_ELEMENTS = 1 << 13  # and bytes of words: as Python numbers they take up to 36 bytes each
_WIDEST_ROW = 128  # kernels with longer rows have no value above: a decoder keeps few values
_NEAREST = 3  # magnitudes of both neighbours together, from here on alike: contexts of the zero decision
_SIGNS = 17  # context of the sign where the neighbours tell nothing; five on either side where they do
_LARGEST_SIGN_CLASS = 5
_MAGNITUDES = 23  # first context of the magnitude
_UNARY = 14  # decisions on a magnitude; what is larger has a length and bits
_LARGEST_NEIGHBOUR = 6
_LENGTHS = _MAGNITUDES + _UNARY * (_LARGEST_NEIGHBOUR + 1)
_LONGEST = 7  # |v| ≤ 256 leaves at most 242 = 0b11110010
CONTEXTS = _LENGTHS + _LONGEST + 1
_SLOWEST = 8  # a context moves by at least 2^-8 of what is left
# Class of what the neighbours say of the sign: 0, 1, 2, 3 to 4, 5 to 8, more.
_SIGN_CLASS = (0, 1, 2, 3, 3, 4, 4, 4, 4)


@dataclass(frozen=True)
class Kernel:
    """How the elements of a tensor lie in its kernels.

    Attributes:
        size: elements of one kernel, which follow each other.
        width: elements of one of its rows.
    """

    size: int
    width: int


def kernel_of(shape: tuple[int, ...]) -> Kernel:
    """Return the kernel of a tensor of this shape: its axes from the third on, in rows along the last one."""
    return Kernel(math.prod(shape[2:]), shape[-1] if len(shape) > 2 else 1)


class _Probabilities:
    """How probable yes is in each context, in 65536ths, and how fast each one learns."""

    def __init__(self) -> None:
        self.yes = [1 << 15] * CONTEXTS
        self._seen = [0] * CONTEXTS
        self._shift = [1] * CONTEXTS

    def learn(self, context: int, bit: int) -> None:
        """Move a context towards what was found: by about 1/n at the n-th time, by 1/256 from the 255th on."""
        shift = self._shift[context]
        if shift < _SLOWEST:
            self._seen[context] += 1
            shift = self._shift[context] = max((self._seen[context] + 1).bit_length() - 1, 1)
        yes = self.yes[context]
        self.yes[context] = yes + (((1 << 16) - 1 - yes) >> shift) if bit else yes - (yes >> shift)


def encode(flat: NDArray[Any], kernel: Kernel) -> bytes:
    """Return the stream of the integers `flat`, of −256 to 256, whose kernels follow each other."""
    probabilities = _Probabilities()
    yes, learn = probabilities.yes, probabilities.learn
    coded = array("I")  # the slots of each decision's outcome: first · 2^13 + number

    def put(context: int, bit: int) -> None:
        f = yes[context] >> 16 - SCALE_BITS
        coded.append(f if bit else f << SCALE_BITS + 1 | SLOTS - f)
        learn(context, bit)

    before: list[int] = []
    for (zero, sign, magnitude), value in zip(_contexts(before, kernel), flat.tolist(), strict=False):
        before.append(value)
        size = abs(value)
        put(zero, size > 0)
        if not size:
            continue
        for limit in range(1, min(size, _UNARY) + 1):
            put(magnitude + limit, size > limit)
        if size > _UNARY:
            rest = size - _UNARY
            length = rest.bit_length() - 1
            for place in range(length + 1):
                put(_LENGTHS + place, place < length)
            for place in reversed(range(length)):
                half = SLOTS >> 1
                coded.append(half if rest >> place & 1 else half << SCALE_BITS + 1 | half)
        put(sign, value > 0)
    state, words = LOWEST_STATE, bytearray()
    for code in reversed(coded):
        first, number = divmod(code, SLOTS << 1)
        if state >= number << 32 - SCALE_BITS:
            words += (state & 0xFFFF).to_bytes(2, "big")
            state >>= 16
        state = (state // number << SCALE_BITS) + state % number + first
    return state.to_bytes(STATE_BYTES, "little") + words[::-1]


def _contexts(before: list[int], kernel: Kernel) -> Iterator[tuple[int, int, int]]:
    """Yield for one value after the other the contexts of its zero and of its sign, and the one below its magnitude's.

    Args:
        before: the values before the next one, of which the last 129 are looked at; the caller appends each value.
        kernel: how the values lie in kernels.
    """
    width = kernel.width
    reach = width if width <= _WIDEST_ROW else kernel.size  # elements at the beginning of a kernel with none above
    while True:
        column = 0  # in the row of the kernel
        for place in range(kernel.size):
            left = before[-1] if column else 0
            above = before[-width] if place >= reach else 0
            corner = before[-width - 1] if column and place >= reach else 0
            a, b = abs(left), abs(above)
            near = a + b
            largest = a if a > b else b
            slope = 2 * (left + above) - corner
            lean = _SIGN_CLASS[abs(slope)] if abs(slope) < len(_SIGN_CLASS) else _LARGEST_SIGN_CLASS
            yield (
                (near if near < _NEAREST else _NEAREST) * 3 + (column > 0) + (place >= reach),
                _SIGNS + (lean if slope >= 0 else -lean),
                _MAGNITUDES - 1 + _UNARY * (largest if largest < _LARGEST_NEIGHBOUR else _LARGEST_NEIGHBOUR),
            )
            column += 1
            if column == width:
                column = 0


def decode(stored: memoryview, elements: int, bits: int, kernel: Kernel) -> Iterator[NDArray[np.int16]]:
    """Yield the integers of a stream in blocks.

    Args:
        stored: the stored bytes of one tensor.
        elements: how many integers it holds, at least one.
        bits: two's-complement width that its values must fit.
        kernel: how they lie in kernels.

    Raises:
        StreamError: the words or the final state are not those of a stream, or a value does not fit.
    """
    if len(stored) < STATE_BYTES or len(stored) % 2:
        raise StreamError("the context coder's state is cut short, or its words end in half a word")
    state = int.from_bytes(stored[:STATE_BYTES], "little")
    if state < LOWEST_STATE:
        raise StreamError("the context coder's state is below 2^16")
    words = _words(stored)
    probabilities = _Probabilities()
    yes, learn = probabilities.yes, probabilities.learn

    def take(f: int) -> bool:
        """Return the next decision, whose yes has the slots below `f`."""
        nonlocal state
        slot = state & SLOTS - 1
        bit = slot < f
        state = f * (state >> SCALE_BITS) + slot if bit else (SLOTS - f) * (state >> SCALE_BITS) + slot - f
        if state < LOWEST_STATE:
            state = state << 16 | next(words)
        return bit

    def ask(context: int) -> bool:
        bit = take(yes[context] >> 16 - SCALE_BITS)
        learn(context, bit)
        return bit

    def value(zero: int, sign: int, magnitude: int) -> int:
        """Return the next value."""
        if not ask(zero):
            return 0
        size = 1
        while size <= _UNARY and ask(magnitude + size):
            size += 1
        if size > _UNARY:
            length = 0
            while ask(_LENGTHS + length):
                length += 1
                if length > _LONGEST:
                    raise StreamError("a magnitude of the context coder has no end")
            rest = 1
            for _ in range(length):
                rest = rest << 1 | take(SLOTS >> 1)
            size = _UNARY + rest
        positive = ask(sign)
        if size > half - positive:
            raise StreamError(f"a value does not fit {-half} … {half - 1}")
        return size if positive else -size

    half = 1 << (bits - 1)
    values: list[int] = []  # the last ones
    contexts = _contexts(values, kernel)
    for first in range(0, elements, _BLOCK_ELEMENTS):
        count = min(_BLOCK_ELEMENTS, elements - first)
        try:
            for found in itertools.islice(contexts, count):
                values.append(value(*found))
        except StopIteration:
            raise StreamError("the words of the context coder end too early") from None
        yield np.array(values[-count:], np.int16)
        del values[: -_WIDEST_ROW - 1]
    if state != LOWEST_STATE or next(words, None) is not None:
        raise StreamError("the context coder does not end where it began: words are left or the state is wrong")


def _words(stored: memoryview) -> Iterator[int]:
    """Yield the words of a stream, which never lie in memory as a whole."""
    for start in range(STATE_BYTES, len(stored), _BLOCK_ELEMENTS):
        yield from np.frombuffer(stored[start : start + _BLOCK_ELEMENTS], "<u2").tolist()
