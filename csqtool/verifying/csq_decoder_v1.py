"""A second decoder of `.csq` files, for the verifier.

It is written from `docs/csq-format.md` and shares no code with the exporter, so that a mistake in one of
the two shows as a difference. Where the exporter shifts 64-bit words, this one expands single bits.
"""

from __future__ import annotations

import json
import math
import string
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.errors import FormatError

# Limits of the specification, each against a file that asks for more than it holds.
HEADER_LIMIT_BYTES = 64 * 1024 * 1024  # memory for parsing JSON
AXES_LIMIT = 32  # shapes that an array library can hold
VALUE_BYTES = 96  # of memory for a parsed JSON value and its key
ELEMENTS_LIMIT = 2**48  # sizes in bits that fit 64-bit integers

PREAMBLE_BYTES = 24
HEADER_KEYS = ["finalized_sha256", "metadata", "tensors"]
TENSOR_KEYS = ["bits", "crc32", "dtype", "encoding", "length", "name", "offset", "shape"]
ELEMENT_TYPES = {
    "BOOL": "?", "C64": "<c8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
    "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
    "U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8",
}  # fmt: skip


def decode(content: bytes, *, where: str, damaged: list[str] | None = None) -> tuple[dict[str, NDArray[Any]], str, str]:
    """Return the tensors by name, the metadata (JSON text) and the SHA-256 that the finalized file must have.

    The integers of quantized layers come as int8 or int16, as the header names them. Whether tensors and
    metadata fit each other and the hash is for the caller to compare.

    Args:
        content: a `.csq` file.
        where: the file's name, for messages.
        damaged: if given, names of tensors whose checksum differs are added here instead of raising, so that
            all of them can be reported.

    Raises:
        FormatError: the file breaks a rule of structure (1 to 18 of the specification).
    """
    header_end, header = _read_header(content, where)
    _require(_has_keys(header, HEADER_KEYS), where, f"header keys must be {', '.join(HEADER_KEYS)}")
    digest, metadata, listing = (header[key] for key in HEADER_KEYS)
    _require(
        isinstance(digest, str) and len(digest) == 64 and not set(digest) - set(string.digits + "abcdef"),
        where,
        "finalized_sha256 is not 64 lower-case hex digits",
    )
    _require(_is_unicode(metadata), where, "metadata is not a string")
    _require(isinstance(listing, list), where, "tensors is not a list")

    tensors: dict[str, NDArray[Any]] = {}
    position = header_end
    for number, item in enumerate(listing):
        _check_item(item, f"{where}: tensors[{number}]")
        name = item["name"]
        place = f"{where}: tensor {name!r} at byte {position}"
        _require(name not in tensors, place, "the name stands twice")
        _require(
            item["offset"] == position - header_end,
            place,
            f"offset is {item['offset']}, the tensors before it end at {position - header_end}",
        )
        end = position + item["length"]
        next_position = (end + 7) // 8 * 8
        _require(next_position <= len(content), place, f"truncated, the file ends at byte {len(content)}")
        stored = content[position:end]
        if zlib.crc32(stored) != item["crc32"]:
            _require(damaged is not None, place, "damaged, its CRC-32 differs")
            assert damaged is not None
            damaged.append(name)
        _require(not content[end:next_position].strip(b"\0"), place, f"padding at byte {end} is not zero")
        values = _expand(stored, item, place) if item["encoding"] == "packed" else _view(stored, item, place)
        tensors[name] = values.reshape(item["shape"])
        position = next_position
    _require(position == len(content), where, f"trailing bytes at byte {position}")
    return tensors, metadata, digest


def _read_header(content: bytes, where: str) -> tuple[int, Any]:
    """Return where the header ends and what it holds."""

    def number(at: int) -> int:
        return int.from_bytes(content[at : at + 4], "little")

    _require(content[:8] == bytes.fromhex("89 43 53 51 0d 0a 1a 0a"), where, "not a csq file (wrong magic)")
    _require(len(content) >= PREAMBLE_BYTES, where, f"truncated at byte {len(content)}, in the preamble")
    version, length, checksum, reserved = (number(at) for at in (8, 12, 16, 20))
    _require(version == 1, where, f"csq version {version} is not supported, only 1")
    _require(length <= HEADER_LIMIT_BYTES, where, f"header of {length} bytes, at most {HEADER_LIMIT_BYTES}")
    _require(length % 8 == 0, where, f"header length {length} is no multiple of 8")
    _require(reserved == 0, where, f"reserved field is {reserved}, not 0")
    end = PREAMBLE_BYTES + length
    _require(end <= len(content), where, f"truncated at byte {len(content)}, the header ends at {end}")
    text = content[PREAMBLE_BYTES:end]
    _require(zlib.crc32(text) == checksum, where, "damaged header, its CRC-32 differs")
    marks = len(text) - len(text.translate(None, b",:[{"))
    _require(
        marks * VALUE_BYTES <= 4 * len(content) + 2**20,
        where,
        f"header holds some {marks} JSON values, too many for {len(content)} bytes",
    )
    try:
        return end, json.loads(str(text, "utf-8"), object_pairs_hook=lambda pairs: _object(pairs, where))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: header is not JSON in UTF-8: {error}") from error


def _object(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for key, value in pairs:
        _require(key not in document, where, f"header key {key!r} stands twice")
        document[key] = value
    return document


def _check_item(item: Any, what: str) -> None:
    """Check all that one tensor's entry says by itself; nothing is allocated before this holds."""
    _require(_has_keys(item, TENSOR_KEYS), what, f"keys must be {', '.join(TENSOR_KEYS)}")
    name, shape, bits = item["name"], item["shape"], item["bits"]
    _require(_is_unicode(name) and _is_name(name), what, "name is not a usable string")
    what = f"{what} {name!r}"
    for key in ("bits", "crc32", "length", "offset"):
        _require(_is_natural(item[key]), what, f"{key} is not an integer of 0 to 2^63 − 1")
    _require(isinstance(shape, list) and all(_is_natural(d) for d in shape), what, "shape is no list of integers")
    _require(len(shape) <= AXES_LIMIT, what, f"{len(shape)} axes, at most {AXES_LIMIT}")
    _require(math.prod(max(d, 1) for d in shape) <= ELEMENTS_LIMIT, what, f"more than {ELEMENTS_LIMIT} elements")
    kind = item["dtype"]
    _require(isinstance(kind, str) and kind in ELEMENT_TYPES, what, f"unknown dtype {kind!r:.80}")
    element_bits = np.dtype(ELEMENT_TYPES[kind]).itemsize * 8
    if item["encoding"] == "packed":
        _require(kind in ("I8", "I16"), what, f"packed dtype is {kind}, expected I8 or I16")
        _require(1 <= bits <= min(9, element_bits), what, f"{bits} bits cannot be packed {kind}")
    else:
        _require(item["encoding"] == "raw", what, f"unknown encoding {item['encoding']!r:.80}")
        _require(bits == element_bits, what, f"bits is {bits}, {kind} has {element_bits}")
    needed = -(-math.prod(shape) * bits // 8)
    _require(item["length"] == needed, what, f"length is {item['length']}, its shape and bits need {needed}")


def _expand(stored: bytes, item: dict[str, Any], place: str) -> NDArray[Any]:
    """Return the integers of a packed stream: the sum of its bits, the highest of each value negative."""
    k, count = item["bits"], math.prod(item["shape"])
    tail = int.from_bytes(stored[-1:], "little") >> ((count * k - 1) % 8 + 1)
    _require(tail == 0, place, "padding bits are not zero")
    place_values = np.array([1 << b for b in range(k - 1)] + [-(1 << (k - 1))], np.int16)
    q = np.empty(count, np.int8 if item["dtype"] == "I8" else np.int16)
    values_at_once = 1 << 16  # a multiple of 8, so that every slice starts on a byte; bounds the bit arrays
    for first in range(0, count, values_at_once):
        number = min(values_at_once, count - first)
        piece = np.frombuffer(stored[first * k // 8 : (first + number) * k // 8 + 1], np.uint8)
        bits = np.unpackbits(piece, count=number * k, bitorder="little").reshape(number, k)  # (value, bit)
        q[first : first + number] = bits @ place_values
    return q


def _view(stored: bytes, item: dict[str, Any], place: str) -> NDArray[Any]:
    """Return the values of a raw tensor, in the machine's own byte order."""
    if item["dtype"] == "BOOL":
        _require(not stored.strip(b"\0\1"), place, "a boolean is neither 0 nor 1")
    values = np.frombuffer(stored, ELEMENT_TYPES[item["dtype"]])
    return values.astype(values.dtype.newbyteorder("="))


def _require(condition: bool, what: str, problem: str) -> None:
    if not condition:
        raise FormatError(f"{what}: {problem}")


def _has_keys(document: Any, keys: list[str]) -> bool:
    return isinstance(document, dict) and sorted(document) == keys


def _is_natural(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_name(name: str) -> bool:
    raw = name.encode()
    return (
        0 < len(raw) < 256
        and raw not in (b".", b"..", b"__metadata__")
        and not any(byte < 32 or byte in b"/\\\x7f" for byte in raw)
    )


def _is_unicode(value: Any) -> bool:
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False
