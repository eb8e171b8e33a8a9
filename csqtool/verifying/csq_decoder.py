"""A second decoder of `.csq` files, for the verifier.

It is written from `docs/csq-format.md` and shares no code with `csqtool.csq`, so that a mistake in one of the two
is seen as a difference.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.errors import FormatError
from csqtool.verifying.csq_contexts import CODED_LIMIT, BadStream
from csqtool.verifying.csq_streams import ELEMENT_TYPES, FLOAT32, INTEGERS, expand, expected_length

PREAMBLE_BYTES = 88
COUNT_LIMIT = 65_536  # tensors
TABLE_LIMIT_BYTES = 32 * 1024 * 1024  # as many tensors with long names
PART_LIMIT_BYTES = 1024 * 1024 * 1024  # inflated metadata or graph
AXES_LIMIT = 32  # shapes that an array library can hold
ELEMENTS_LIMIT = 2**48  # sizes in bits that fit 64-bit integers
GROWTH_LIMIT = 64  # decoded tensors against the file


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    dtype: int
    encoding: int
    bits: int
    shape: tuple[int, ...]
    crc32: int
    length: int


def decode(content: bytes, *, where: str, damaged: list[str] | None = None) -> tuple[dict[str, NDArray[Any]], str, str]:
    """Return the tensors by name, the metadata (JSON text) and the SHA-256 that the finalized file must have.

    The integers of quantized layers come as int8 or int16, as the table names them. Whether tensors and
    metadata fit each other and the hash is for the caller to compare.

    Args:
        content: a `.csq` file.
        where: the file's name, for messages.
        damaged: if given, the names of tensors whose checksum differs are added here instead of raising, so that
            all of them can be reported; tensors that cannot be decoded are missing in the result.

    Raises:
        FormatError: the file breaks a rule of structure, or a tensor one of its encoding.
    """
    _require(content[:8] == bytes.fromhex("89 43 53 51 0d 0a 1a 0a"), where, "not a csq file (wrong magic)")
    _require(len(content) >= 12, where, f"truncated at byte {len(content)}, in the preamble")
    _require(_u32(content, 8) in (2, 3), where, f"csq version {_u32(content, 8)} is not supported, only 2 and 3")
    rows, metadata, _, position = _structure(content, where)
    places = []
    for row in rows:
        what = f"{where}: tensor {row.name!r} at byte {position}"
        places.append((row, position, what))
        position = _skip_padding(content, position + row.length, what)
    _require(position == len(content), where, f"trailing bytes at byte {position}")
    decoded = sum(math.prod(row.shape) * np.dtype(ELEMENT_TYPES[row.dtype]).itemsize for row in rows)
    _require(decoded <= GROWTH_LIMIT * len(content), where, f"{decoded} bytes of tensors in {len(content)} bytes")

    coded = sum(
        math.prod(row.shape)
        for row, start, _ in places
        if row.encoding == 7 or (row.encoding == 6 and row.length and content[start] == 7)
    )
    wanted = range(1, CODED_LIMIT + 1) if _u32(content, 8) == 3 else range(1)
    _require(coded in wanted, where, f"{coded} context-coded elements in a file of version {_u32(content, 8)}")

    tensors: dict[str, NDArray[Any]] = {}
    for row, start, what in places:
        stored = content[start : start + row.length]
        intact = zlib.crc32(stored) == row.crc32
        _require(intact or damaged is not None, what, "damaged, its CRC-32 differs")
        if not intact and damaged is not None:
            damaged.append(row.name)
        dtype = np.dtype(ELEMENT_TYPES[row.dtype])
        try:
            flat = expand(row.encoding, stored, row.shape, row.bits, dtype, most_bytes=4 * len(content))
        except BadStream as error:
            _require(not intact, what, str(error))
            continue
        tensors[row.name] = flat.astype(dtype.newbyteorder("=")).reshape(row.shape)
    return tensors, metadata, content[40:72].hex()


def graph_part(content: bytes, *, where: str) -> tuple[bytes | None, int]:
    """Return the graph of a file, inflated (None without one), and the byte at which it begins.

    Raises:
        FormatError: the file breaks a rule of structure.
    """
    _, _, graph, _ = _structure(content, where)
    return graph, PREAMBLE_BYTES + sum((_u32(content, at) + 7) // 8 * 8 for at in (16, 20))


def _structure(content: bytes, where: str) -> tuple[list[_Row], str, bytes | None, int]:
    """Return the table, the metadata, the graph (None without one), and where the data begin."""
    _require(len(content) >= PREAMBLE_BYTES, where, f"truncated at byte {len(content)}, in the preamble")
    _require(zlib.crc32(content[:84]) == _u32(content, 84), where, "damaged preamble, its CRC-32 differs")
    count, table_bytes, metadata_bytes, graph_bytes, metadata_size, graph_size, reserved = (
        _u32(content, at) for at in range(12, 40, 4)
    )
    _require(reserved == 0, where, f"reserved field is {reserved}, not 0")
    _require(count <= COUNT_LIMIT and table_bytes <= TABLE_LIMIT_BYTES, where, f"{count} tensors or table too large")
    position = PREAMBLE_BYTES
    parts = {}
    for name, size, checksum_at in (
        ("tensor table", table_bytes, 72),
        ("metadata", metadata_bytes, 76),
        ("graph", graph_bytes, 80),
    ):
        what = f"{where}: {name} at byte {position}"
        end = _skip_padding(content, position + size, what)
        parts[name] = content[position : position + size]
        _require(zlib.crc32(parts[name]) == _u32(content, checksum_at), what, "damaged, its CRC-32 differs")
        position = end
    metadata = _inflated(parts["metadata"], metadata_size, len(content), f"{where}: metadata")
    graph = None
    if graph_bytes or graph_size:
        graph = _inflated(parts["graph"], graph_size, len(content), f"{where}: graph")
    try:
        text = str(metadata, "utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: metadata are not UTF-8: {error}") from error
    return _table(parts["tensor table"], count, where), text, graph, position


def _inflated(part: bytes, size: int, file_bytes: int, what: str) -> bytes:
    _require(size <= min(PART_LIMIT_BYTES, 2**20 + 4 * file_bytes), what, f"{size} bytes inflated are too many")
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(part, size + 1)
    except zlib.error as error:
        raise FormatError(f"{what}: not a zlib stream: {error}") from error
    _require(len(plain) == size and stream.eof and not stream.unused_data, what, f"does not inflate to {size} bytes")
    return plain


def _table(table: bytes, count: int, where: str) -> list[_Row]:
    rows: list[_Row] = []
    at = 0
    for number in range(count):
        what = f"{where}: tensor {number} of the table, at byte {PREAMBLE_BYTES + at}"
        _require(at + 16 <= len(table), what, "the table ends inside it")
        dtype, encoding, bits, axes = table[at : at + 4]
        crc32, length = _u32(table, at + 4), int.from_bytes(table[at + 8 : at + 16], "little")
        _require(axes <= AXES_LIMIT, what, f"shape of {axes} axes, at most {AXES_LIMIT}")
        at += 16
        _require(at + 4 * axes < len(table), what, "the table ends inside it")
        shape = tuple(_u32(table, at + 4 * i) for i in range(axes))
        at += 4 * axes
        name = table[at + 1 : at + 1 + table[at]]
        _require(len(name) == table[at], what, "the table ends inside its name")
        at += 1 + len(name)
        rows.append(_Row(_name(name, what), dtype, encoding, bits, shape, crc32, length))
        _check_row(rows[-1], what)
        _require(number == 0 or name > rows[-2].name.encode(), what, "names occur twice or do not ascend")
    _require(at == len(table), where, f"{len(table) - at} bytes too many in the table")
    return rows


def _name(raw: bytes, what: str) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{what}: its name is not UTF-8: {error}") from error
    _require(raw and raw not in (b".", b"..", b"__metadata__"), what, f"bad name {name!r}")
    _require(not any(byte < 32 or byte in b"/\\\x7f" for byte in raw), what, f"bad name {name!r}")
    return name


def _check_row(row: _Row, what: str) -> None:
    """Check everything that one row says by itself, before anything is allocated for its tensor."""
    what = f"{what} {row.name!r}"
    _require(row.dtype < len(ELEMENT_TYPES), what, f"unknown dtype {row.dtype}")
    _require(row.encoding <= 7, what, f"unknown encoding {row.encoding}")
    _require(all(row.shape), what, f"shape {row.shape} has a dimension of zero")
    count = math.prod(row.shape)
    _require(count <= ELEMENTS_LIMIT, what, f"shape {row.shape} has more than {ELEMENTS_LIMIT} elements")
    element_bits = np.dtype(ELEMENT_TYPES[row.dtype]).itemsize * 8
    if row.encoding == 0:
        _require(row.bits == element_bits, what, f"bits is {row.bits}, raw elements have {element_bits}")
    elif row.encoding == 5:
        _require(row.dtype == FLOAT32 and row.bits == 16, what, "half tensors are F32 of 16 bits")
    else:
        _require(row.dtype in INTEGERS, what, "integer encodings are for I8 or I16")
        max_bits = 2 if row.encoding == 2 else min(9, element_bits)
        _require(1 <= row.bits <= max_bits, what, f"bits is {row.bits}, at most {max_bits}")
        _require(row.encoding != 6 or len(row.shape) >= 2, what, f"pruned tensor of shape {row.shape}, needs two axes")
    length = expected_length(row.encoding, count, row.bits)
    _require(length in (None, row.length), what, f"length is {row.length}, its shape and bits need {length}")


def _skip_padding(content: bytes, end: int, what: str) -> int:
    padded = (end + 7) // 8 * 8
    _require(padded <= len(content), what, f"truncated: ends at byte {padded}, the file at {len(content)}")
    _require(not content[end:padded].strip(b"\0"), what, f"padding at byte {end} is not zero")
    return padded


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _require(condition: Any, what: str, problem: str) -> None:
    if not condition:
        raise FormatError(f"{what}: {problem}")
