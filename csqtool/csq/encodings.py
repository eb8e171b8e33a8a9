"""The encodings of a tensor. The writer takes the one with the fewest bytes; the reader decodes in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.csq import context, rans
from csqtool.csq.bit_fields import pack_fields, pack_integers, unpack_integers, unpacked_blocks
from csqtool.csq.entry import DTYPES, Encoding, Entry, encoding_problem, stored_bytes
from csqtool.csq.rans import StreamError
from csqtool.errors import ExportError

MAX_LEVELS = 256  # one byte holds their number; beyond it a codebook saves nothing
_DIGITS = 5  # ternary digits a byte: 3^5 = 243
_PLACES = 3 ** np.arange(_DIGITS)
_BLOCK_BYTES = 1 << 16
_OF_CHANNELS = (Encoding.DENSE, Encoding.TERNARY, Encoding.CODEBOOK, Encoding.RANS, Encoding.CONTEXT)


def encode_integers(q: NDArray[Any], bits: int, *, smallest: bool) -> tuple[Encoding, bytes]:
    """Return how to store `q` and its bytes.

    Args:
        q: integers in C order, at least one, that fit `bits` bits.
        bits: two's-complement width.
        smallest: take the encoding with the fewest bytes, not always the dense one.
    """
    flat = q.reshape(-1)
    dense = Encoding.DENSE, pack_integers(flat, bits)
    if not smallest:
        return dense
    lowest = int(flat.min())
    counts = np.bincount(flat.astype(np.int64) - lowest)
    # The first of equal sizes wins: in the order of decoding speed.
    candidates = [dense]
    if lowest >= -1 and lowest + len(counts) <= 2:
        candidates.append((Encoding.TERNARY, _pack_ternary(flat)))
    if (levels := np.flatnonzero(counts)).size <= MAX_LEVELS:
        candidates.append((Encoding.CODEBOOK, _pack_codebook(flat, levels + lowest)))
    if levels.size >= 2:
        candidates.append((Encoding.RANS, rans.encode(flat, rans.fitted(lowest, counts))))
    if q.ndim >= 2 and (pruned := _pack_pruned(q, bits)) is not None:
        candidates.append((Encoding.PRUNED, pruned))
    return min(candidates, key=lambda candidate: len(candidate[1]))


def encode_with_contexts(q: NDArray[Any], bits: int) -> tuple[Encoding, bytes]:
    """Return how to store `q` with the fewest bytes, context coding included, and its bytes.

    Arguments are those of `encode_integers`, whose choice stays where context coding saves nothing. A file has
    at most `context.MAX_ELEMENTS` elements stored so, which the caller counts.
    """
    kernel = context.kernel_of(q.shape)
    candidates = [encode_integers(q, bits, smallest=True), (Encoding.CONTEXT, context.encode(q.reshape(-1), kernel))]
    if q.ndim >= 2 and (found := _channels(q)) is not None:
        lists, stored = found
        candidates.append((Encoding.PRUNED, bytes([Encoding.CONTEXT]) + lists + context.encode(stored, kernel)))
    return min(candidates, key=lambda candidate: len(candidate[1]))


def encode_others(array: NDArray[Any], name: str) -> tuple[Encoding, bytes]:
    """Return how to store a tensor that is not quantized, and its bytes: float32 as float16 where that is exact.

    Raises:
        ExportError: a boolean is neither 0 nor 1 in memory.
    """
    stored = array.astype(array.dtype.newbyteorder("<")).tobytes()  # C order
    if array.dtype == np.bool_ and stored.translate(None, b"\0\1"):
        raise ExportError(f"csq: {name}: a boolean is neither 0 nor 1 in memory")
    if array.dtype.newbyteorder("=") == np.float32:
        with np.errstate(over="ignore", invalid="ignore"):
            half = array.astype("<f2")
            if half.astype("<f4").tobytes() == stored:
                return Encoding.HALF, half.tobytes()
    return Encoding.RAW, stored


def blocks(entry: Entry, stored: memoryview) -> Iterator[NDArray[Any]]:
    """Yield the elements of a tensor in order, in flat blocks that the next one may overwrite.

    Raises:
        StreamError: the bytes break a rule of their encoding.
    """
    if entry.encoding is Encoding.RANS:
        return rans.decode(stored, entry.elements, entry.bits)
    if entry.encoding is Encoding.CONTEXT:
        return context.decode(stored, entry.elements, entry.bits, context.kernel_of(entry.shape))
    decoders = {
        Encoding.RAW: _raw,
        Encoding.HALF: _half,
        Encoding.DENSE: _dense,
        Encoding.TERNARY: _ternary,
        Encoding.CODEBOOK: _codebook,
        Encoding.PRUNED: _pruned,
    }
    return decoders[entry.encoding](entry, stored)


def decode(entry: Entry, stored: memoryview) -> NDArray[Any]:
    """Return a tensor, in the machine's byte order; memory for it is taken once, here.

    Raises:
        StreamError: the bytes break a rule of their encoding.
    """
    if entry.encoding is Encoding.DENSE:
        _check_padding(stored, entry.elements * entry.bits)
        return unpack_integers(stored, entry.elements, entry.bits, entry.native).reshape(entry.shape)
    flat = np.empty(entry.elements, entry.native)
    position = 0
    for block in blocks(entry, stored):
        flat[position : position + block.size] = block
        position += block.size
    return flat.reshape(entry.shape)


def _raw(entry: Entry, stored: memoryview) -> Iterator[NDArray[Any]]:
    values = np.frombuffer(stored, DTYPES[entry.dtype])
    for start in range(0, values.size, _BLOCK_BYTES):
        block = values[start : start + _BLOCK_BYTES]
        if entry.dtype == "BOOL" and (block.view(np.uint8) > 1).any():
            raise StreamError("a boolean is neither 0 nor 1")
        yield block


def _half(entry: Entry, stored: memoryview) -> Iterator[NDArray[Any]]:
    values = np.frombuffer(stored, "<f2")
    for start in range(0, values.size, _BLOCK_BYTES):
        with np.errstate(invalid="ignore"):
            yield values[start : start + _BLOCK_BYTES].astype(np.float32)


def _dense(entry: Entry, stored: memoryview) -> Iterator[NDArray[Any]]:
    _check_padding(stored, entry.elements * entry.bits)
    for block, _ in unpacked_blocks(stored, entry.elements, entry.bits):
        yield block


def _check_padding(stored: memoryview, bits: int) -> None:
    if bits % 8 and stored[-1] >> bits % 8:
        raise StreamError("the padding bits of its last byte are not zero")


def _pack_ternary(flat: NDArray[Any]) -> bytes:
    """Return five digits v + 1 a byte, the first in the lowest place; missing ones are 0."""
    digits = np.zeros(-(-flat.size // _DIGITS) * _DIGITS, np.uint8)
    digits[: flat.size] = flat + 1
    return (digits.reshape(-1, _DIGITS) @ _PLACES).astype(np.uint8).tobytes()  # (byte, digit) · (digit)


def _ternary(entry: Entry, stored: memoryview) -> Iterator[NDArray[Any]]:
    table = (np.arange(3**_DIGITS)[:, None] // _PLACES % 3 - 1).astype(np.int8)  # (byte, digit)
    lowest = -(1 << (entry.bits - 1))
    source = np.frombuffer(stored, np.uint8)
    if (source >= 3**_DIGITS).any():
        raise StreamError(f"a ternary byte is above {3**_DIGITS - 1}")
    if entry.elements % _DIGITS and source[-1] >= 3 ** (entry.elements % _DIGITS):
        raise StreamError("the padding digits of its last byte are not zero")
    for start in range(0, source.size, _BLOCK_BYTES):
        block = table[source[start : start + _BLOCK_BYTES]].reshape(-1)[: entry.elements - start * _DIGITS]
        if entry.bits == 1 and block.max() > 0:
            raise StreamError(f"a value does not fit {lowest} … 0")
        yield block


def _pack_codebook(flat: NDArray[Any], levels: NDArray[np.int64]) -> bytes:
    """Return the levels, in ascending order, and the index of each value's level."""
    index = np.zeros(int(levels[-1] - levels[0]) + 1, np.int16)
    index[levels - levels[0]] = np.arange(levels.size)
    bits = (levels.size - 1).bit_length()
    fields = pack_fields(index[flat.astype(np.int64) - levels[0]], bits) if bits else b""
    return bytes([levels.size - 1]) + levels.astype("<i2").tobytes() + fields


def _codebook(entry: Entry, stored: memoryview) -> Iterator[NDArray[Any]]:
    count = stored[0] + 1 if len(stored) else 1
    bits = (count - 1).bit_length()
    begin = 1 + 2 * count
    if len(stored) != begin + stored_bytes(entry.elements, bits):
        raise StreamError(f"length is {len(stored)}, {count} levels take {begin + stored_bytes(entry.elements, bits)}")
    levels = np.frombuffer(stored, "<i2", count, 1).astype(np.int16)
    half = 1 << (entry.bits - 1)
    if (np.diff(levels.astype(np.int32)) <= 0).any() or levels[0] < -half or levels[-1] >= half:
        raise StreamError(f"the levels do not ascend within {-half} … {half - 1}")
    if not bits:
        for start in range(0, entry.elements, _BLOCK_BYTES):
            yield np.full(min(_BLOCK_BYTES, entry.elements - start), levels[0])
        return
    _check_padding(stored, entry.elements * bits)
    for block, _ in unpacked_blocks(stored[begin:], entry.elements, bits, signed=False):
        index = block.view(np.uint8)  # up to 8 bits
        if index.max() >= count:
            raise StreamError(f"an index is {index.max()}, there are {count} levels")
        yield levels[index]


def _pack_pruned(q: NDArray[Any], bits: int) -> bytes | None:
    """Return which channels of the first two axes are stored, and these; None where none is all zero, or all are."""
    if (found := _channels(q)) is None:
        return None
    lists, flat = found
    encoding, stored = encode_integers(flat, bits, smallest=True)
    return bytes([encoding]) + lists + stored


def _channels(q: NDArray[Any]) -> tuple[bytes, NDArray[Any]] | None:
    """Return the lists of the channels that are not all zero, and their elements; None where all are, or none is."""
    used = np.any(q.reshape(*q.shape[:2], -1), axis=-1)  # (first axis, second axis)
    rows, columns = used.any(1), used.any(0)
    if (rows.all() and columns.all()) or not rows.any():
        return None
    lists = b"".join(np.packbits(kept, bitorder="little").tobytes() for kept in (rows, columns))
    return lists, q[rows][:, columns].reshape(-1)


def _pruned(entry: Entry, stored: memoryview) -> Iterator[NDArray[Any]]:
    size, columns = entry.shape[0], entry.shape[1]
    begin = 1 + stored_bytes(size, 1) + stored_bytes(columns, 1)
    if len(stored) < begin:
        raise StreamError("the list of stored channels is cut short")
    if stored[0] not in _OF_CHANNELS:
        raise StreamError(f"stored channels have encoding {stored[0]}, expected 1 to 4 or 7")
    row_bits, column_bits = stored[1 : 1 + stored_bytes(size, 1)], stored[1 + stored_bytes(size, 1) : begin]
    _check_padding(row_bits, size)
    _check_padding(column_bits, columns)
    depth = entry.elements // (size * columns)  # elements of one channel pair
    kept = _ones(row_bits) * _ones(column_bits) * depth
    if not kept:
        raise StreamError("no channel is stored")
    shape = (1, kept // depth, *entry.shape[2:])
    inner = replace(entry, shape=shape, encoding=Encoding(stored[0]), length=len(stored) - begin)
    if (problem := encoding_problem(inner)) is not None:
        raise StreamError(f"stored channels: {problem}")
    source = blocks(inner, stored[begin:])
    rest = np.empty(0, np.int16)  # decoded, not yet yielded
    row_octets, column_octets = np.frombuffer(row_bits, np.uint8), np.frombuffer(column_bits, np.uint8)
    for start in range(0, entry.elements, _BLOCK_BYTES):
        pair = np.arange(start, min(start + _BLOCK_BYTES, entry.elements)) // depth
        row, column = np.divmod(pair, columns)
        here = (row_octets[row >> 3] >> (row & 7) & column_octets[column >> 3] >> (column & 7) & 1).astype(np.bool_)
        wanted = int(np.count_nonzero(here))
        while rest.size < wanted:
            rest = np.concatenate([rest, next(source)])
        out = np.zeros(pair.size, np.int16)
        out[here] = rest[:wanted]
        rest = rest[wanted:]
        yield out
    for _ in source:  # what is checked after the last element
        pass


def _ones(octets: memoryview) -> int:
    return int(np.bitwise_count(np.frombuffer(octets, np.uint8)).sum(dtype=np.int64))
