"""The verifier's own decoder of the encodings of `.csq` tensors, written from the specification.

Nothing here is shared with `csqtool.csq`. Where that looks values up in tables, this expands single bits, divides by
three and searches cumulative frequencies; of many lanes once for each slot.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.verifying.csq_contexts import BadStream, contexts

ELEMENT_TYPES = ["?", "u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8", "<c8"]
FLOAT32 = 10
INTEGERS = (2, 4)  # codes of I8 and I16
LANES = [1 << i for i in range(11)]
VALUES_AT_ONCE = 1 << 16  # a multiple of 8, so that slices of bit streams start on a byte


def require(condition: Any, problem: str) -> None:
    """Raise `BadStream` if `condition` is false."""
    if not condition:
        raise BadStream(problem)


def expected_length(encoding: int, count: int, bits: int) -> int | None:
    """Return the stored bytes of `count` elements; None if they depend on the stream."""
    if encoding in (0, 1, 5):
        return -(-count * bits // 8)
    return -(-count // 5) if encoding == 2 else None


def expand(
    encoding: int, stored: bytes, shape: tuple[int, ...], bits: int, dtype: np.dtype[Any], *, most_bytes: int
) -> NDArray[Any]:
    """Return the elements of a tensor, flat.

    Args:
        encoding: its number in the table.
        stored: its bytes.
        shape: its shape.
        bits: of an element.
        dtype: its type.
        most_bytes: a larger tensor is decoded twice, so that no memory is taken for it before its stream is known to
            be right.

    Raises:
        BadStream: a rule of the encoding is violated.
    """
    if encoding == 0:
        require(dtype != np.bool_ or not stored.strip(b"\0\1"), "a boolean is neither 0 nor 1")
        return np.frombuffer(stored, dtype)
    if encoding == 5:
        with np.errstate(invalid="ignore"):
            return np.frombuffer(stored, "<f2").astype(dtype)
    count = math.prod(shape)

    def parts() -> Iterator[NDArray[Any]]:
        return pruned(stored, shape, bits) if encoding == 6 else made(encoding, stored, count, bits, shape)

    if count * dtype.itemsize > most_bytes:
        for _ in parts():
            pass
    q = np.empty(count, dtype)
    position = 0
    for part in parts():
        q[position : position + len(part)] = part
        position += len(part)
    require(position == count, "the stream is too short")
    return q


def fields(stored: bytes, count: int, bits: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the bits of `count` values, lowest first: arrays [value, bit]."""
    used = count * bits % 8
    require(not used or not stored[-1] >> used, "padding bits are not zero")
    for first in range(0, count, VALUES_AT_ONCE):
        number = min(VALUES_AT_ONCE, count - first)
        piece = np.frombuffer(stored[first * bits // 8 : (first + number) * bits // 8 + 1], np.uint8)
        yield np.unpackbits(piece, count=number * bits, bitorder="little").reshape(number, bits)


def twos_complement(stored: bytes, count: int, bits: int) -> Iterator[NDArray[Any]]:
    """Yield the sum of each value's bits, the highest one negative."""
    places = np.array([1 << b for b in range(bits - 1)] + [-(1 << (bits - 1))], np.int16)
    for piece in fields(stored, count, bits):
        yield piece @ places


def ternary(stored: bytes, count: int, bits: int) -> Iterator[NDArray[Any]]:
    """Yield five digits a byte, the first one the remainder of a division by three."""
    require(not stored or max(stored) <= 242, "a ternary byte is above 242")
    for first in range(0, len(stored), VALUES_AT_ONCE):
        rest = np.frombuffer(stored[first : first + VALUES_AT_ONCE], np.uint8)
        digits = np.empty((len(rest), 5), np.int8)
        for place in range(5):
            rest, digits[:, place] = np.divmod(rest, 3)
        flat = digits.reshape(-1)
        wanted = count - first * 5
        require(not flat[wanted:].any(), "padding digits are not zero")
        require(bits == 2 or flat[:wanted].max() <= 1, "a value does not fit one bit")
        yield flat[:wanted] - np.int8(1)


def codebook(stored: bytes, count: int, bits: int) -> Iterator[NDArray[Any]]:
    """Yield the levels that the indices name."""
    require(len(stored) >= 3, "the codebook is cut short")
    size = stored[0] + 1
    index_bits = (size - 1).bit_length()
    end = 1 + 2 * size
    require(len(stored) == end + -(-count * index_bits // 8), f"length does not fit {size} levels")
    levels = [int.from_bytes(stored[i : i + 2], "little", signed=True) for i in range(1, end, 2)]
    require(all(a < b for a, b in itertools.pairwise(levels)), "the levels do not ascend")
    require(-(2 ** (bits - 1)) <= levels[0] and levels[-1] < 2 ** (bits - 1), f"the levels do not fit {bits} bits")
    values = np.array(levels, np.int16)
    if not index_bits:
        for first in range(0, count, VALUES_AT_ONCE):
            yield np.repeat(values, min(VALUES_AT_ONCE, count - first))
        return
    for piece in fields(stored[end:], count, index_bits):
        index = piece @ (1 << np.arange(index_bits))
        require(index.max() < size, f"an index is beyond the {size} levels")
        yield values[index]


def rans(stored: bytes, count: int, bits: int) -> Iterator[NDArray[Any]]:
    """Yield the values in the order of the elements; of few lanes all at once, decoded without vectors."""
    require(len(stored) >= 5, "the frequency table is cut short")
    lowest = int.from_bytes(stored[0:2], "little", signed=True)
    size = int.from_bytes(stored[2:4], "little")
    require(2 <= size <= 512, f"{size} symbols in the frequency table")
    wanted = max(1, min(count // 1024, 32), min(count // 4096, 1024))
    lanes = max(power for power in LANES if power <= wanted)
    require(stored[4] == lanes.bit_length() - 1, f"2^{stored[4]} lanes, {count} elements have {lanes}")
    require(-(2 ** (bits - 1)) <= lowest and lowest + size <= 2 ** (bits - 1), f"the values do not fit {bits} bits")
    table_end = 5 + -(-12 * size // 8)
    state_end = table_end + 4 * lanes
    require(state_end <= len(stored), "the frequency table or the states are cut short")
    frequency = np.concatenate([p @ (1 << np.arange(12)) for p in fields(stored[5:table_end], size, 12)])
    cumulative = np.concatenate([[0], np.cumsum(frequency)])
    require(cumulative[-1] == 4096, f"the frequencies sum to {cumulative[-1]}, not 4096")
    require(frequency[0] and frequency[-1], "the frequency table begins or ends with zero")
    require((len(stored) - state_end) % 2 == 0, "the words end in half a word")
    states = np.frombuffer(stored[table_end:state_end], "<u4").astype(np.uint32)
    require(states.min() >= 65536, "a state is below 2^16")
    words = np.frombuffer(stored[state_end:], "<u2")
    position = 0
    if lanes <= 8:
        f, c = frequency.tolist(), cumulative.tolist()[:-1]
        lane = states.tolist()
        symbols = []
        supply = iter(words[:count].tolist())
        for turn in itertools.islice(itertools.cycle(range(lanes)), count):
            rest, slot = divmod(lane[turn], 4096)
            symbols.append(bisect.bisect(c, slot) - 1)
            lane[turn] = f[symbols[-1]] * rest + slot - c[symbols[-1]]
            if lane[turn] < 65536:
                word = next(supply, None)
                require(word is not None, "the words end too early")
                lane[turn] = lane[turn] * 65536 + word
                position += 1
        states = np.array(lane)
        yield np.array(symbols) + lowest
    if lanes > 8:
        position = yield from _many_lanes(states, words, count, frequency, cumulative, lowest)
    require(position == len(words) and (states == 65536).all(), "words are left over, or the final states are wrong")


def _many_lanes(
    states: NDArray[np.uint32],
    words: NDArray[np.uint16],
    count: int,
    frequency: NDArray[Any],
    cumulative: NDArray[Any],
    lowest: int,
) -> Generator[NDArray[Any], None, int]:
    """Yield the values, one step of all lanes after the other, and return how many words they took.

    The states are left as they end.
    """
    lanes, position = len(states), 0
    slots = np.arange(4096)
    symbol = np.searchsorted(cumulative, slots, side="right") - 1
    value = (symbol + lowest).astype(np.int16)
    factor, rest = frequency[symbol].astype(np.uint32), (slots - cumulative[symbol]).astype(np.uint32)
    at_once = VALUES_AT_ONCE // lanes * lanes
    for first in range(0, count, at_once):
        values = np.empty(min(at_once, count - first), np.int16)
        for begin in range(0, len(values), lanes):
            now = states[: len(values) - begin]  # of the last elements, fewer than there are lanes
            slot = now & 4095
            values[begin : begin + lanes] = value[slot]
            now >>= 12
            now *= factor[slot]
            now += rest[slot]
            (low,) = (now < 65536).nonzero()
            taken = words[position : position + len(low)]
            require(len(taken) == len(low), "the words end too early")
            now[low] = now[low] << 16 | taken
            position += len(low)
        yield values
    return position


MAKERS: dict[int, Callable[[bytes, int, int], Iterator[NDArray[Any]]]] = {
    1: twos_complement,
    2: ternary,
    3: codebook,
    4: rans,
}


def made(encoding: int, stored: bytes, count: int, bits: int, shape: tuple[int, ...]) -> Iterator[NDArray[Any]]:
    """Yield `count` elements of a tensor of this shape, in an encoding of single elements."""
    return contexts(stored, count, bits, shape[2:]) if encoding == 7 else MAKERS[encoding](stored, count, bits)


def pruned(stored: bytes, shape: tuple[int, ...], bits: int) -> Iterator[NDArray[Any]]:
    """Yield the elements in order, zeros where the index of one of the first two axes is not stored."""
    row_end = 1 + -(-shape[0] // 8)
    end = row_end + -(-shape[1] // 8)
    require(len(stored) >= end, "the list of stored channels is cut short")
    require(stored[0] in (1, 2, 3, 4, 7), f"stored channels of encoding {stored[0]}")
    rows = np.frombuffer(stored[1:row_end], np.uint8)
    columns = np.frombuffer(stored[row_end:end], np.uint8)
    for octets, size in ((rows, shape[0]), (columns, shape[1])):
        require(size % 8 == 0 or octets[-1] < 2 ** (size % 8), "padding bits are not zero")
    depth = math.prod(shape[2:])
    count = depth * math.prod(int(np.bitwise_count(octets).sum(dtype=np.int64)) for octets in (rows, columns))
    require(count, "no channel is stored")
    require(stored[0] != 2 or bits <= 2, f"bits is {bits}, ternary has at most 2")
    length = expected_length(stored[0], count, bits)
    require(length in (None, len(stored) - end), f"length of the stored channels is not {length}")
    pieces = made(stored[0], stored[end:], count, bits, shape)
    ready: list[NDArray[Any]] = []
    total = math.prod(shape)
    for first in range(0, total, VALUES_AT_ONCE):
        row, inside = np.divmod(np.arange(first, min(first + VALUES_AT_ONCE, total)), shape[1] * depth)
        column = inside // depth
        stored_here = rows[row // 8] // 2 ** (row % 8) % 2 + columns[column // 8] // 2 ** (column % 8) % 2 == 2
        wanted = int(stored_here.sum())
        have = len(ready[0]) if ready else 0
        while have < wanted:
            ready.append(next(pieces))
            have += len(ready[-1])
        source = np.concatenate([np.empty(0, np.int16), *ready])
        values = np.zeros(len(row), np.int16)
        values[stored_here] = source[:wanted]
        ready = [source[wanted:]]
        yield values
    for _ in pieces:  # the rules on its end
        pass
