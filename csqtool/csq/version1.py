"""The container, version 1: a JSON header with a tensor table; only read, files of it stay readable for ever."""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from csqtool.csq.container import ALIGNMENT, Container
from csqtool.csq.entry import (
    DTYPES,
    MAX_ELEMENTS,
    MAX_RANK,
    MEMORY_FLOOR,
    PARSED_BYTES,
    Encoding,
    name_problem,
    stored_bytes,
)
from csqtool.csq.entry import Entry as TensorEntry
from csqtool.errors import FormatError
from csqtool.files import unique_keys
from csqtool.quantized_model import MAX_BIT_WIDTH

MAX_HEADER_BYTES = 64 << 20  # a parsed JSON header takes some 10 times its bytes in memory; real ones are < 1 MB
MAX_COUNT = (1 << 63) - 1  # every number of the header fits a signed 64-bit integer
PREAMBLE = struct.Struct("<8sIIII")  # magic, version, header length, CRC-32 of the header, reserved
_ENCODINGS = {"raw": Encoding.RAW, "packed": Encoding.DENSE}


@dataclass(frozen=True)
class Entry:
    """What the JSON header says about one tensor; the fields are the keys of the JSON object."""

    name: str
    dtype: str
    shape: list[int]
    encoding: str
    bits: int
    offset: int
    length: int
    crc32: int


def parse(content: memoryview, where: str) -> Container:
    """Return what stands around the tensors; their bytes are not looked at.

    Raises:
        FormatError: a rule of structure is broken.
    """
    header, data_start = _header_bytes(content, where)
    finalized_sha256, metadata, entries = _parse_header(header, len(content), where)
    _check_layout(entries, content, data_start, where)
    tensors = tuple(
        TensorEntry(
            entry.name, entry.dtype, tuple(entry.shape), _ENCODINGS[entry.encoding], entry.bits,
            data_start + entry.offset, entry.length, entry.crc32,
        )
        for entry in entries
    )  # fmt: skip
    return Container(1, finalized_sha256, metadata, tensors, None, PREAMBLE.size, data_start)


def _header_bytes(content: memoryview, where: str) -> tuple[bytes, int]:
    """Return the header and the offset of the data section."""
    if len(content) < PREAMBLE.size:
        raise FormatError(f"{where}: truncated at byte {len(content)}, the preamble has {PREAMBLE.size} bytes")
    _, _, length, crc, reserved = PREAMBLE.unpack_from(content)
    if length > MAX_HEADER_BYTES or length % ALIGNMENT:
        raise FormatError(
            f"{where}: header length {length} at byte 12, expected a multiple of {ALIGNMENT} up to {MAX_HEADER_BYTES}"
        )
    if reserved:
        raise FormatError(f"{where}: the reserved field at byte 20 holds {reserved}, expected 0")
    data_start = PREAMBLE.size + length
    if data_start > len(content):
        raise FormatError(f"{where}: truncated at byte {len(content)}, the header ends at byte {data_start}")
    header = bytes(content[PREAMBLE.size : data_start])
    if (found := zlib.crc32(header)) != crc:
        raise FormatError(f"{where}: damaged header: CRC-32 is {found:08x}, byte 16 says {crc:08x}")
    return header, data_start


def _parse_header(header: bytes, file_bytes: int, where: str) -> tuple[str, str, list[Entry]]:
    """Return the header's SHA-256, metadata and tensor entries."""
    values = sum(header.count(c) for c in b",[{:")
    if values * PARSED_BYTES > 4 * file_bytes + MEMORY_FLOOR:
        raise FormatError(f"{where}: the header holds some {values} JSON values, too many for {file_bytes} bytes")
    try:
        document = json.loads(header.decode(), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: the header is not JSON in UTF-8: {error}") from error
    _check_keys(document, {"finalized_sha256", "metadata", "tensors"}, f"{where}: the header")
    digest, metadata, tensors = document["finalized_sha256"], document["metadata"], document["tensors"]
    if not (isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)):
        raise FormatError(f"{where}: finalized_sha256 is {digest!r:.100}, expected 64 lower-case hex digits")
    if not (_is_text(metadata) and isinstance(tensors, list)):
        raise FormatError(f"{where}: the header's metadata must be a string and its tensors a list")
    entries = [_parse_entry(tensor, f"{where}: tensor {i} of the header") for i, tensor in enumerate(tensors)]
    seen: set[str] = set()
    for entry in entries:
        if entry.name in seen:
            raise FormatError(f"{where}: tensor {entry.name!r} stands twice in the header")
        seen.add(entry.name)
    return digest, metadata, entries


def _parse_entry(tensor: Any, what: str) -> Entry:
    _check_keys(tensor, {field.name for field in fields(Entry)}, what)
    if not _is_text(tensor["name"]):
        raise FormatError(f"{what}: bad name {tensor['name']!r:.100}")
    if (problem := name_problem(tensor["name"])) is not None:
        raise FormatError(f"{what}: bad name {tensor['name']!r:.100}: {problem}")
    entry = Entry(**tensor)
    what = f"{what} ({entry.name!r})"
    for key in ("bits", "offset", "length", "crc32"):
        if not _is_count(tensor[key]):
            raise FormatError(f"{what}: {key} is {tensor[key]!r:.100}, expected an integer of 0 to 2^63 − 1")
    if not isinstance(entry.shape, list) or len(entry.shape) > MAX_RANK or not all(map(_is_count, entry.shape)):
        raise FormatError(
            f"{what}: shape is {entry.shape!r:.100}, expected a list of at most {MAX_RANK} integers of 0 to 2^63 − 1"
        )
    if (problem := _size_problem(entry.shape)) is not None:
        raise FormatError(f"{what}: {problem}")
    if not isinstance(entry.dtype, str) or entry.dtype not in DTYPES:
        raise FormatError(f"{what}: unknown dtype {entry.dtype!r:.100}; known: {', '.join(DTYPES)}")
    _check_encoding(entry, what)
    if entry.length != (expected := stored_bytes(math.prod(entry.shape), entry.bits)):
        raise FormatError(
            f"{what}: length is {entry.length}, shape {entry.shape} at {entry.bits} bits takes {expected} bytes"
        )
    return entry


def _check_encoding(entry: Entry, what: str) -> None:
    width = DTYPES[entry.dtype].itemsize * 8
    if entry.encoding == "raw":
        if entry.bits != width:
            raise FormatError(f"{what}: bits is {entry.bits}, raw {entry.dtype} has {width}")
    elif entry.encoding == "packed":
        if entry.dtype not in ("I8", "I16"):
            raise FormatError(f"{what}: packed tensors are I8 or I16, got {entry.dtype}")
        if not 1 <= entry.bits <= min(width, MAX_BIT_WIDTH):
            raise FormatError(
                f"{what}: bits is {entry.bits}, packed {entry.dtype} has 1 to {min(width, MAX_BIT_WIDTH)}"
            )
    else:
        raise FormatError(f"{what}: unknown encoding {entry.encoding!r:.100}; known: packed, raw")


def _check_layout(entries: list[Entry], content: memoryview, data_start: int, where: str) -> None:
    """Check that the tensors tile the data section exactly, in the header's order."""
    end = 0
    for entry in entries:
        what = f"{where}: tensor {entry.name!r} at byte {data_start + entry.offset}"
        if entry.offset != end:
            kind = "is unaligned" if entry.offset % ALIGNMENT else "overlaps" if entry.offset < end else "has a gap"
            raise FormatError(f"{what}: offset {entry.offset} {kind}, expected {end}")
        end += entry.length
        padded = end + -end % ALIGNMENT
        if data_start + padded > len(content):
            raise FormatError(f"{what}: truncated: it ends at byte {data_start + padded}, the file has {len(content)}")
        if any(content[data_start + end : data_start + padded]):
            raise FormatError(f"{what}: the padding behind it is not zero")
        end = padded
    if trailing := len(content) - data_start - end:
        raise FormatError(f"{where}: {trailing} trailing bytes at byte {data_start + end}")


def _size_problem(shape: Sequence[int]) -> str | None:
    """Return why a shape is refused, if it is; zero-length axes do not hide the others from the limit."""
    if math.prod(d for d in shape if d) > MAX_ELEMENTS:
        return f"shape {list(shape)} exceeds {MAX_ELEMENTS} elements"
    return None


def _check_keys(document: Any, expected: set[str], what: str) -> None:
    if not isinstance(document, dict):
        raise FormatError(f"{what} is not a JSON object")
    if missing := expected - document.keys():
        raise FormatError(f"{what} lacks {', '.join(sorted(missing))}")
    if unknown := document.keys() - expected:
        raise FormatError(f"{what} has an unknown key {min(unknown)!r:.100}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_COUNT  # JSON's true is no 1


def _is_text(value: Any) -> bool:
    """Tell whether `value` is a string that UTF-8 can carry: JSON escapes can spell lone surrogates."""
    if not isinstance(value, str):
        return False
    return not any("\ud800" <= character <= "\udfff" for character in value)
