"""Streams of k-bit fields: field i is in the bits [i·k, (i+1)·k), lowest bit first."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.csq.entry import stored_bytes
from csqtool.errors import ExportError
from csqtool.quantized_model import MAX_BIT_WIDTH

_GROUPS_AT_ONCE = 1 << 14  # groups of 8 values; bounds the 64-bit temporaries of packing to about 1 MB
# Widths that are read through a table: values that one lookup gives.
_VALUES_A_LOOKUP = {1: 8, 2: 4, 3: 4, 4: 4}


def pack_integers(q: NDArray[Any], bits: int) -> bytes:
    """Return the two's-complement stream of `q`: ⌈elements · bits / 8⌉ bytes.

    Six integers of three bits take 18 bits, hence three bytes; as one little-endian number they are
    Σ (q_i mod 2³) · 2^(3i):

        >>> q = np.array([[-1, 0, 3], [-4, 1, 2]], np.int8)  # shape (2, 3)
        >>> stream = pack_integers(q, 3)
        >>> stream.hex(" "), len(stream)
        ('c7 18 01', 3)
        >>> sum((int(v) % 8) << 3 * i for i, v in enumerate(q.flat)) == int.from_bytes(stream, "little")
        True
        >>> unpack_integers(stream, q.size, 3, q.dtype).reshape(q.shape)  # (6,) → (2, 3)
        array([[-1,  0,  3],
               [-4,  1,  2]], dtype=int8)

    Args:
        q: integers of any shape, packed in C order.
        bits: width of a field, 1 to 9.

    Raises:
        ExportError: a value does not fit, or `bits` is not 1 to 9. Nothing is ever masked silently.
    """
    if not 1 <= bits <= MAX_BIT_WIDTH:
        raise ExportError(f"csq packs 1 to {MAX_BIT_WIDTH} bits a value, got {bits}")
    if q.dtype.kind not in "iu":
        raise ExportError(f"csq packs integers, got {q.dtype}")
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    if q.size and (int(q.min()) < low or int(q.max()) > high):
        raise ExportError(f"integers {q.min()} … {q.max()} do not fit {bits} bits ({low} … {high})")
    return pack_fields(q.reshape(-1), bits)


def pack_fields(flat: NDArray[Any], bits: int) -> bytes:
    """Return the stream of the lowest `bits` bits (1 to 12) of each value."""
    stream = np.zeros((-(-flat.size // 8), bits), np.uint8)  # (group, byte): 8 values of k bits are k bytes
    for start, rows in _blocks(len(stream)):
        block = flat[start * 8 : (start + rows) * 8].astype(np.int16) & ((1 << bits) - 1)
        values = np.zeros((rows, 8), np.uint64)  # (group, value in the group)
        values.reshape(-1)[: block.size] = block
        # Two words of four values, 4·k ≤ 48 bits each; they meet on a byte or on half a byte.
        words = np.zeros((rows, 2), np.uint64)
        for i in range(8):
            words[:, i // 4] |= values[:, i] << np.uint64(i % 4 * bits)
        for byte in range(bits):
            shift = 8 * byte - 4 * bits  # of the second word, to the right
            high = words[:, 1] >> np.uint64(shift) if shift >= 0 else words[:, 1] << np.uint64(-shift)
            stream[start : start + rows, byte] = (words[:, 0] >> np.uint64(8 * byte) | high) & np.uint64(0xFF)
    return stream.tobytes()[: stored_bytes(flat.size, bits)]


def unpack_integers(stream: bytes | memoryview, count: int, bits: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the `count` two's-complement integers of a stream, shape (count,)."""
    q = np.empty(count, dtype)
    for block, first in unpacked_blocks(stream, count, bits):
        q[first : first + block.size] = block
    return q


def unpacked_blocks(
    stream: bytes | memoryview, count: int, bits: int, *, signed: bool = True
) -> Iterator[tuple[NDArray[Any], int]]:
    """Yield (values, index of the first) of a stream, in blocks whose temporaries stay in the cache.

    A block is int8 (int16 for nine bits and more) and is overwritten by the next one.
    """
    source = np.frombuffer(stream, np.uint8)
    groups = -(-count // 8)
    buffer = np.empty((min(groups, _GROUPS_AT_ONCE), 8), np.int8 if bits <= 8 else np.int16)
    for start, rows in _blocks(groups):
        octets = source[start * bits : (start + rows) * bits]
        if octets.size < rows * bits:  # the last group is cut short
            octets = np.concatenate([octets, np.zeros(rows * bits - octets.size, np.uint8)])
        out = buffer[:rows]
        if signed and bits in _VALUES_A_LOOKUP and sys.byteorder == "little":
            _look_up(octets, bits, out)
        elif bits == 8 and signed:
            out[...] = octets.view(np.int8).reshape(rows, 8)
        else:
            _shift(octets, bits, out, signed)
        yield out.reshape(-1)[: count - start * 8], start * 8


def _look_up(octets: NDArray[np.uint8], bits: int, out: NDArray[Any]) -> None:
    """Decode whole groups through a table of several values an entry."""
    table = _table(bits)
    words = out.reshape(-1).view(table.dtype)  # one entry of the table is one word
    if bits == 3:  # three bytes are two indices of 12 bits
        a, b, c = (octets[i::3].astype(np.uint16) for i in range(3))
        np.take(table, a | ((b & 15) << 8), out=words[0::2], mode="clip")
        np.take(table, (b >> 4) | (c << 4), out=words[1::2], mode="clip")
    else:
        np.take(table, octets.view(np.uint16) if bits == 4 else octets, out=words, mode="clip")


@lru_cache(maxsize=len(_VALUES_A_LOOKUP))
def _table(bits: int) -> NDArray[Any]:
    """Return the values that each index holds, as int8 side by side in one word."""
    values = _VALUES_A_LOOKUP[bits]
    index = np.arange(1 << (bits * values))[:, None] >> (np.arange(values) * bits)  # (index, value)
    sign = 1 << (bits - 1)
    signed = (((index & ((1 << bits) - 1)) ^ sign) - sign).astype(np.int8)
    return np.ascontiguousarray(signed).view(np.uint64 if values == 8 else np.uint32).reshape(-1)


def _shift(octets: NDArray[np.uint8], bits: int, out: NDArray[Any], signed: bool) -> None:
    """Decode whole groups by shifts, four values (at most 48 bits) in a 64-bit word."""
    rows = len(out)
    padded = np.zeros((rows, bits + 8), np.uint8)  # (group, byte)
    padded[:, :bits] = octets.reshape(rows, bits)
    sign = 1 << (bits - 1) if signed else 0
    for half in range(2):
        first_bit = 4 * bits * half
        octet = np.ascontiguousarray(padded[:, first_bit // 8 : first_bit // 8 + 8])
        word = octet.view("<u8").reshape(rows).astype(np.uint64) >> np.uint64(first_bit % 8)
        for i in range(4):
            value = (word >> np.uint64(i * bits)) & np.uint64((1 << bits) - 1)
            out[:, 4 * half + i] = (value.astype(np.int16) ^ sign) - sign


def _blocks(groups: int) -> Iterator[tuple[int, int]]:
    """Yield (first group, number of groups) of blocks whose temporaries stay small."""
    for start in range(0, groups, _GROUPS_AT_ONCE):
        yield start, min(_GROUPS_AT_ONCE, groups - start)
