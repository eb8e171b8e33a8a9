"""Static range asymmetric numeral systems: a stream within a fraction of a percent of the zero-order entropy.

Several lanes, each a 32-bit state of its own, share one stream of 16-bit words: element i belongs to lane
i mod lanes, and decoding walks the elements in order. One step of all lanes is one vectorised round.
Decoding a symbol takes x to f·⌊x / 2^12⌋ + (x mod 2^12) − c, where the symbol owns the slots [c, c + f); a
state below 2^16 then takes in one word. Encoding is the same backwards, from 2^16 in every lane, which is
where decoding has to end.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.csq.bit_fields import pack_fields, unpacked_blocks

SCALE_BITS = 12  # slots that frequencies sum to: a table of 4096 stays in any first-level cache
SLOTS = 1 << SCALE_BITS
LOWEST_STATE = 1 << 16
MAX_LANES = 1 << 10  # decoders keep every lane's state: 4 kB
MAX_SYMBOLS = 512  # nine bits
HEAD_BYTES = 5  # lowest value (i16), symbols (u16), log2 of the lanes (u8)
_BLOCK_ELEMENTS = 1 << 16
_FEW_LANES = 8  # up to here a vectorised round takes longer than its elements one by one


class StreamError(ValueError):
    """A stream breaks a rule of its encoding."""


@dataclass(frozen=True)
class Model:
    """Frequencies of consecutive values.

    Attributes:
        lowest: the value of the first frequency.
        frequencies: of each value from `lowest` on, zero where it does not occur; their sum is 2^12.
    """

    lowest: int
    frequencies: NDArray[np.int64]


def fitted(lowest: int, counts: NDArray[np.int64]) -> Model:
    """Return frequencies that sum to 2^12 for how often consecutive values occur, at least one a value that does.

    `counts` holds at most 2^12 values and at least two that occur.
    """
    used = counts > 0
    exact = counts * (SLOTS / counts.sum())
    f = np.where(used, np.maximum(np.rint(exact), 1), 0)
    # Rounding misses the sum by a little; each step goes where the stream grows least (or shrinks most).
    while (excess := int(f.sum()) - SLOTS) != 0:
        with np.errstate(divide="ignore", invalid="ignore"):
            step = -1 if excess > 0 else 1
            cost = np.where(used & (f + step >= 1), counts * np.log2(f / (f + step)), np.inf)
        f[int(np.argmin(cost))] += step
    return Model(lowest, f.astype(np.int64))


def lanes_for(elements: int) -> int:
    """Return how many lanes a stream has: one costs three bytes, fewer make vectorised decoding slower.

    The format prescribes them: with one lane for a million elements a few bytes would keep a reader busy for long.
    """
    wanted = max(elements >> 12, min(elements >> 10, 32), 1)
    return min(1 << (wanted.bit_length() - 1), MAX_LANES)


def encode(flat: NDArray[Any], model: Model) -> bytes:
    """Return the stream of the integers `flat`, every one of which `model` gives a frequency."""
    f = model.frequencies
    c = np.cumsum(f) - f
    lanes = lanes_for(flat.size)
    symbols = flat.astype(np.int64) - model.lowest
    states = np.full(lanes, LOWEST_STATE, np.int64)
    emitted: list[NDArray[np.int64]] = []
    for start in range((flat.size - 1) // lanes * lanes, -1, -lanes):
        symbol = symbols[start : start + lanes]
        x, frequency = states[: symbol.size], f[symbol]
        full = x >= frequency << (32 - SCALE_BITS)
        emitted.append(x[full] & 0xFFFF)
        x = np.where(full, x >> 16, x)
        states[: symbol.size] = (x // frequency << SCALE_BITS) + x % frequency + c[symbol]
    words = np.concatenate(emitted[::-1]).astype("<u2")
    head = model.lowest.to_bytes(2, "little", signed=True) + f.size.to_bytes(2, "little")
    head += bytes([lanes.bit_length() - 1]) + pack_fields(f, SCALE_BITS)
    return head + states.astype("<u4").tobytes() + words.tobytes()


def decode(stored: memoryview, elements: int, bits: int) -> Iterator[NDArray[np.int16]]:
    """Yield the integers of a stream in blocks.

    Args:
        stored: the stored bytes of one tensor.
        elements: how many integers it holds, at least one.
        bits: two's-complement width that its values must fit.

    Raises:
        StreamError: the table, the words or the final states are not those of a stream.
    """
    model, lanes, position = _read_head(stored, elements, bits)
    states = np.frombuffer(stored, "<u4", lanes, position).astype(np.int64)
    if (states < LOWEST_STATE).any():
        raise StreamError("an entropy coder's state is below 2^16")
    position += 4 * lanes
    if (len(stored) - position) % 2:
        raise StreamError("the entropy-coded words end in half a word")
    words = np.frombuffer(stored, "<u2", offset=position)
    decoder = _one_by_one if lanes <= _FEW_LANES else _in_rounds
    taken = yield from decoder(model, states, words, elements)
    if taken != words.size or (states != LOWEST_STATE).any():
        raise StreamError("the entropy coder does not end where it began: words are left or states are wrong")


def _one_by_one(
    model: Model, states: NDArray[np.int64], words: NDArray[np.uint16], elements: int
) -> Generator[NDArray[np.int16], None, int]:
    """Yield the elements and return how many words they took; `states` are left as they end."""
    f, c = model.frequencies.tolist(), (np.cumsum(model.frequencies) - model.frequencies).tolist()
    lanes, food, taken = states.tolist(), words[:elements].tolist(), 0
    block = np.empty(elements, np.int16)  # few lanes have few elements
    for i in range(elements):
        lane = i % len(lanes)
        x = lanes[lane]
        slot = x & (SLOTS - 1)
        symbol = bisect_right(c, slot) - 1
        x = f[symbol] * (x >> SCALE_BITS) + slot - c[symbol]
        if x < LOWEST_STATE:
            if taken == len(food):
                raise StreamError("the entropy-coded words end too early")
            x = x << 16 | food[taken]
            taken += 1
        lanes[lane] = x
        block[i] = symbol + model.lowest
    states[:] = lanes
    yield block
    return taken


def _in_rounds(
    model: Model, states: NDArray[np.int64], words: NDArray[np.uint16], elements: int
) -> Generator[NDArray[np.int16], None, int]:
    """Do what `_one_by_one` does for all lanes at once."""
    f, lanes, taken = model.frequencies, states.size, 0
    symbol = np.repeat(np.arange(f.size), f)  # by slot
    value = (symbol + model.lowest).astype(np.int16)
    frequency = f[symbol]
    offset = np.arange(SLOTS) - (np.cumsum(f) - f)[symbol]
    rounds = max(_BLOCK_ELEMENTS // lanes, 1)
    for first in range(0, elements, rounds * lanes):
        block = np.empty(min(rounds * lanes, elements - first), np.int16)
        for start in range(0, block.size, lanes):
            x = states[: min(lanes, block.size - start)]
            slot = x & (SLOTS - 1)
            block[start : start + lanes] = value[slot]
            x[...] = frequency[slot] * (x >> SCALE_BITS) + offset[slot]
            hungry = np.flatnonzero(x < LOWEST_STATE)
            food = words[taken : taken + hungry.size]
            if food.size < hungry.size:
                raise StreamError("the entropy-coded words end too early")
            x[hungry] = x[hungry] << 16 | food
            taken += hungry.size
        yield block
    return taken


def _read_head(stored: memoryview, elements: int, bits: int) -> tuple[Model, int, int]:
    """Return the model, the number of lanes, and where the states begin."""
    if len(stored) < HEAD_BYTES:
        raise StreamError("the frequency table is cut short")
    lowest = int.from_bytes(stored[:2], "little", signed=True)
    count = int.from_bytes(stored[2:4], "little")
    lanes = 1 << stored[4] if stored[4] < 32 else MAX_LANES + 1
    if not 2 <= count <= MAX_SYMBOLS:
        raise StreamError(f"{count} symbols, expected 2 to {MAX_SYMBOLS}")
    if lowest < -(1 << (bits - 1)) or lowest + count > 1 << (bits - 1):
        raise StreamError(f"values {lowest} … {lowest + count - 1} do not fit {bits} bits")
    if lanes != lanes_for(elements):
        raise StreamError(f"2^{stored[4]} lanes, {elements} elements have {lanes_for(elements)}")
    table_end = HEAD_BYTES + (count * SCALE_BITS + 7) // 8
    states_end = table_end + 4 * lanes
    if states_end > len(stored):
        raise StreamError("the frequency table or the states are cut short")
    if count % 2 and stored[table_end - 1] >> 4:
        raise StreamError("the padding bits of the frequency table are not zero")
    table = unpacked_blocks(stored[HEAD_BYTES:table_end], count, SCALE_BITS, signed=False)
    f = np.concatenate([block.astype(np.int64) for block, _ in table])
    if f.sum() != SLOTS or not f[0] or not f[-1]:
        raise StreamError(f"the frequencies sum to {f.sum()}, expected {SLOTS}, or begin or end with zero")
    return Model(lowest, f), lanes, table_end
