"""The verifier's own decoder of context-coded tensors, written from the specification.

Contexts are words and numbers here, looked up by what they mean, and a kernel is walked row by row.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 1 << 13  # values
LONGEST_ROW = 128  # of a kernel whose values have neighbours above
CODED_LIMIT = 2**24  # context-coded elements of a file


class BadStream(ValueError):
    """The bytes of a tensor violate a rule of its encoding."""


class Decisions:
    """Answers yes or no, from the state and the words of a stream."""

    def __init__(self, stored: bytes) -> None:
        if len(stored) < 4 or len(stored) % 2:
            raise BadStream("the context-coded stream is cut short: it has a state of four bytes and words of two")
        self.state = int.from_bytes(stored[:4], "little")
        if self.state < 65536:
            raise BadStream("a state is below 2^16")
        self._stored = stored
        self._next = 4
        # Of each context the probability of yes, in 65536ths, and how often it was met.
        self._contexts: defaultdict[tuple[str, int, int], tuple[int, int]] = defaultdict(lambda: (32768, 0))

    def of(self, kind: str, first: int, second: int = 0) -> bool:
        """Return the next decision in a context, which learns from it."""
        context = kind, first, second
        probability, met = self._contexts[context]
        answer = self.plain(probability // 16)
        met = min(met + 1, 255)
        divisor = 2 ** max(1, int(math.log2(met + 1)))
        if answer:
            probability += (65535 - probability) // divisor
        else:
            probability -= probability // divisor
        self._contexts[context] = probability, met
        return answer

    def plain(self, yes: int) -> bool:
        """Return the next decision, of which `yes` of 4096 slots say yes."""
        rest, slot = divmod(self.state, 4096)
        answer = slot < yes
        self.state = yes * rest + slot if answer else (4096 - yes) * rest + slot - yes
        if self.state < 65536:
            word = self._stored[self._next : self._next + 2]
            if not word:
                raise BadStream("the words end too early")
            self.state = self.state * 65536 + word[0] + 256 * word[1]
            self._next += 2
        return answer

    def check_end(self) -> None:
        """Check that nothing is left."""
        if self._next != len(self._stored) or self.state != 65536:
            raise BadStream("words are left over, or the final state is wrong")


def contexts(stored: bytes, count: int, bits: int, axes: tuple[int, ...]) -> Iterator[NDArray[Any]]:
    """Yield the values in the order of the elements.

    Args:
        stored: the bytes of the stream.
        count: elements.
        bits: of each.
        axes: the tensor's axes from the third on, which make a kernel.

    Raises:
        BadStream: a rule of the encoding is violated.
    """
    decisions = Decisions(stored)
    ready: list[int] = []
    for value in _values(decisions, math.prod(axes), axes[-1] if axes else 1):
        if not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
            raise BadStream(f"a value of {value} does not fit {bits} bits")
        ready.append(value)
        count -= 1
        if len(ready) == AT_ONCE or not count:
            yield np.array(ready, np.int16)
            ready.clear()
        if not count:
            break
    decisions.check_end()


def _values(decisions: Decisions, size: int, width: int) -> Iterator[int]:
    """Yield one value after the other, without an end."""
    while True:
        upper: list[int] = []  # the row above, which the first of a kernel does not have
        for _ in range(size // width):
            row: list[int] = []
            for column in range(width):
                left = row[-1] if column else None
                above, corner = (upper[column], upper[column - 1] if column else 0) if upper else (None, 0)
                value = _value(decisions, left, above, corner)
                yield value
                if width > LONGEST_ROW:
                    row.clear()
                row.append(value)
            upper = row if width <= LONGEST_ROW else []


def _value(decisions: Decisions, left: int | None, above: int | None, corner: int) -> int:
    """Return the next value; a neighbour that does not exist is None, or 0 for the corner."""
    exist = (left is not None) + (above is not None)
    left, above = left or 0, above or 0
    if not decisions.of("not zero", min(abs(left) + abs(above), 3), exist):
        return 0
    largest = min(max(abs(left), abs(above)), 6)
    magnitude = 1
    while magnitude < 15 and decisions.of("larger", largest, magnitude):
        magnitude += 1
    if magnitude == 15:
        length = 0
        while decisions.of("longer", length):
            length += 1
            if length > 7:
                raise BadStream("a magnitude is longer than 7 bits")
        digits = [decisions.plain(2048) for _ in range(length)]
        magnitude = 14 + sum((digit << place) for place, digit in enumerate([*reversed(digits), True]))
    slope = 2 * (left + above) - corner
    lean = sum(abs(slope) >= step for step in (1, 2, 3, 5, 9))
    return magnitude if decisions.of("positive", lean if slope >= 0 else -lean) else -magnitude
