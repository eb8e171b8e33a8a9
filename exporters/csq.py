"""The bit-packed `.csq` file, version 1: every quantized weight at its layer's bit width.

`docs/csq-format.md` is the normative specification; the rule numbers in comments are its rule numbers.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csqtool.errors import ExportError, FormatError
from csqtool.files import write_bytes
from csqtool.finalized_file import from_tensors, serialize, to_tensors
from csqtool.quantized_model import MAX_BIT_WIDTH, QuantizedModel

# Limits of a file, checked before anything is allocated for it.
MAX_HEADER_BYTES = 64 << 20  # a parsed JSON header takes some 10 times its bytes in memory; real ones are < 1 MB
MAX_RANK = 32  # every array library in use holds this many axes
MAX_ELEMENTS = 1 << 48  # elements, bits and bytes of a tensor then stay below 2^63 in any reader's integers
MAX_COUNT = (1 << 63) - 1  # every number of the header fits a signed 64-bit integer

# First byte above ASCII: no text file. CR LF, EOF and LF: a transfer in text mode changes them.
MAGIC = b"\x89CSQ\r\n\x1a\n"
VERSION = 1
ALIGNMENT = 8
PREAMBLE = struct.Struct("<8sIIII")  # magic, version, header length, CRC-32 of the header, reserved

DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "C64": np.dtype("<c8"),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

_GROUPS_AT_ONCE = 1 << 14  # groups of 8 values; bounds the 64-bit temporaries of packing to about 1 MB


@dataclass(frozen=True)
class Entry:
    """What the header says about one tensor; the fields are the keys of the JSON object."""

    name: str
    dtype: str
    shape: list[int]
    encoding: str
    bits: int
    offset: int
    length: int
    crc32: int


class CsqExporter:
    """Writes a model as one `.csq` file, which `unpack` turns back into the finalized model bit for bit."""

    name = "csq"
    suffix = ".csq"
    description = "bit-packed weights at each layer's own bit width, restored bit for bit by unpack"

    def export(self, model: QuantizedModel, path: Path, *, build_module: Any = None) -> list[str]:
        """Write `model` to `path` atomically.

        Args:
            model: what to write.
            path: the file to write or replace.
            build_module: not needed by this format.

        Returns:
            Notes for the user: none, because the format carries every finalized model completely.

        Raises:
            ExportError: the model holds something that the format cannot carry.
        """
        write_bytes(path, pack(model))
        return []

    def float32_size(self, model: QuantizedModel, *, build_module: Any = None) -> int:
        """Return the bytes of the float32 model as a safetensors file, which is what unpacked weights would be."""
        weights = {layer.name: layer.dequantized() for layer in model.layers}
        return len(serialize({**model.tensors, **weights}, "{}"))

    def unpack(self, content: bytes, *, where: str) -> bytes:
        """Return the finalized file that was packed into `content`; see `unpack`."""
        return unpack(content, where=where)


def pack(model: QuantizedModel) -> bytes:
    """Return the `.csq` file of `model`; the same model always gives the same bytes.

    Raises:
        ExportError: the model holds something that the format cannot carry.
    """
    tensors, metadata = _tensors_of(model)
    bit_widths = {layer.name: layer.bit_width for layer in model.layers}
    entries: list[Entry] = []
    data = bytearray()
    for name in sorted(tensors):
        entry, stored = _encode(name, tensors[name], bit_widths.get(name), offset=len(data))
        entries.append(entry)
        data += stored + bytes(-len(stored) % ALIGNMENT)
    document = {
        "finalized_sha256": hashlib.sha256(serialize(tensors, metadata)).hexdigest(),
        "metadata": metadata,
        "tensors": [asdict(entry) for entry in entries],
    }
    header = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % ALIGNMENT)
    if len(header) > MAX_HEADER_BYTES:
        raise ExportError(
            f"csq: the header (names, shapes, metadata) takes {len(header)} bytes, at most {MAX_HEADER_BYTES}"
        )
    return PREAMBLE.pack(MAGIC, VERSION, len(header), zlib.crc32(header), 0) + header + data


def unpack(content: bytes, *, where: str) -> bytes:
    """Return the finalized safetensors file that was packed into `content`, bit for bit.

    Args:
        content: a `.csq` file.
        where: the file's name, for messages.

    Raises:
        FormatError: `content` is damaged or no `.csq` file of version 1.
    """
    return _read(content, where)[1]


def read_csq(content: bytes, *, where: str) -> QuantizedModel:
    """Return the model in a `.csq` file, checked down to the SHA-256 of its finalized file.

    Args:
        content: a `.csq` file.
        where: the file's name, for messages.

    Raises:
        FormatError: `content` is damaged or no `.csq` file of version 1.
    """
    return _read(content, where)[0]


# --- k-bit streams ---------------------------------------------------------------------------------------


def stored_bytes(elements: int, bits: int) -> int:
    """Return the bytes that `elements` values of `bits` bits take."""
    return (elements * bits + 7) // 8


def pack_integers(q: NDArray[Any], bits: int) -> bytes:
    """Return the two's-complement stream of `q`: value i stands in bits [i·k, (i+1)·k), lowest bit first.

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

    flat = q.reshape(-1)
    stream = np.zeros((-(-flat.size // 8), bits), np.uint8)  # (group, byte): 8 values of k bits are k bytes
    for start, rows in _blocks(len(stream)):
        block = flat[start * 8 : (start + rows) * 8].astype(np.int16) & ((1 << bits) - 1)
        values = np.zeros((rows, 8), np.uint64)  # (group, value in the group)
        values.reshape(-1)[: block.size] = block
        words = np.zeros(rows, np.uint64)
        for i in range(8):
            words |= values[:, i] << np.uint64(i * bits)
        octets = words.astype("<u8").view(np.uint8).reshape(rows, 8)  # (group, byte)
        stream[start : start + rows, :8] = octets[:, :bits]
        if bits == 9:  # 72 bits: the word lost all but the lowest bit of the group's last value
            stream[start : start + rows, 8] = values[:, 7] >> np.uint64(1)
    return stream.tobytes()[: stored_bytes(flat.size, bits)]


def unpack_integers(stream: bytes | memoryview, count: int, bits: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the `count` integers of a stream that `pack_integers` wrote."""
    source = np.frombuffer(stream, np.uint8)
    q = np.empty((-(-count // 8), 8), dtype)  # (group, value in the group)
    sign = 1 << (bits - 1)
    for start, rows in _blocks(len(q)):
        block = source[start * bits : (start + rows) * bits]
        octets = np.zeros((rows, bits), np.uint8)  # (group, byte)
        octets.reshape(-1)[: block.size] = block
        words = np.zeros((rows, 8), np.uint8)  # (group, byte of a 64-bit word)
        words[:, :bits] = octets[:, :8]
        word = words.view("<u8").reshape(rows).astype(np.uint64)
        for i in range(8):
            value = word >> np.uint64(i * bits)
            if bits == 9 and i == 7:  # the word holds one bit of this value, the ninth byte the rest
                value |= octets[:, 8].astype(np.uint64) << np.uint64(1)
            value &= np.uint64((1 << bits) - 1)
            q[start : start + rows, i] = (value.astype(np.int16) ^ sign) - sign
    return q.reshape(-1)[:count].copy()


def _blocks(groups: int) -> Iterator[tuple[int, int]]:
    """Yield (first group, number of groups) of blocks whose temporaries stay small."""
    for start in range(0, groups, _GROUPS_AT_ONCE):
        yield start, min(_GROUPS_AT_ONCE, groups - start)


# --- writing ---------------------------------------------------------------------------------------------


def _tensors_of(model: QuantizedModel) -> tuple[dict[str, NDArray[Any]], str]:
    """Return the tensors and metadata of the finalized file, refusing what the format cannot carry."""
    try:
        tensors, metadata = to_tensors(model)
        for text in (*tensors, metadata):
            text.encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise ExportError(f"csq: the model's description is not valid JSON in UTF-8: {error}") from error
    for name, array in tensors.items():
        if name == "__metadata__":
            raise ExportError(f"csq: a tensor cannot be called {name!r}, safetensors reserves the name")
        if array.dtype.newbyteorder("<") not in DTYPE_NAMES:
            raise ExportError(f"csq: {name}: cannot store {array.dtype}; stored: {', '.join(DTYPES)}")
        if array.ndim > MAX_RANK:
            raise ExportError(f"csq: {name} has {array.ndim} axes, at most {MAX_RANK}")
        if (problem := _size_problem(array.shape)) is not None:
            raise ExportError(f"csq: {name}: {problem}")
    return tensors, metadata


def _encode(name: str, array: NDArray[Any], bit_width: int | None, *, offset: int) -> tuple[Entry, bytes]:
    """Return the header entry and the stored bytes of a tensor; `bit_width` is None for raw ones."""
    dtype = array.dtype.newbyteorder("<")
    if bit_width is None:
        encoding, bits = "raw", dtype.itemsize * 8
        stored = array.astype(dtype).tobytes()  # C order
        if dtype == np.bool_ and stored.translate(None, b"\0\1"):
            raise ExportError(f"csq: {name}: a boolean is neither 0 nor 1 in memory")
    else:
        encoding, bits = "packed", bit_width
        stored = pack_integers(array, bits)
    entry = Entry(
        name=name,
        dtype=DTYPE_NAMES[dtype],
        shape=list(array.shape),
        encoding=encoding,
        bits=bits,
        offset=offset,
        length=len(stored),
        crc32=zlib.crc32(stored),
    )
    return entry, stored


def _size_problem(shape: Sequence[int]) -> str | None:
    """Return why a shape is refused, if it is; zero-length axes do not hide the others from the limit."""
    if math.prod(d for d in shape if d) > MAX_ELEMENTS:
        return f"shape {list(shape)} exceeds {MAX_ELEMENTS} elements"
    return None


# --- reading ---------------------------------------------------------------------------------------------


def _read(content: bytes, where: str) -> tuple[QuantizedModel, bytes]:
    header, data_start = _header_bytes(content, where)
    finalized_sha256, metadata, entries = _parse_header(header, where)
    _check_layout(entries, content, data_start, where)
    tensors = {entry.name: _decode(entry, content, data_start, where) for entry in entries}

    from safetensors import SafetensorError

    try:
        model = from_tensors(tensors, metadata, where=where)
        finalized = serialize(tensors, metadata)
    except FormatError as error:
        text = str(error)
        raise FormatError(text if text.startswith(where) else f"{where}: {text}") from error
    except (SafetensorError, ArithmeticError, ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"{where}: tensors and metadata describe no finalized model: {error}") from error

    # Rule 19: the sizes that the file claims are the sizes that the model has.
    stored = {entry.name: entry.bits for entry in entries if entry.encoding == "packed"}
    if stored != (expected := {layer.name: layer.bit_width for layer in model.layers}):
        wrong = min(name for name in stored.keys() | expected.keys() if stored.get(name) != expected.get(name))
        raise FormatError(
            f"{where}: tensor {wrong!r} is packed at {stored.get(wrong, 'no')} bits, "
            f"the metadata say {expected.get(wrong, 'no')} bits"
        )
    # Rule 20: the end-to-end check, from the writer's memory to here.
    if (digest := hashlib.sha256(finalized).hexdigest()) != finalized_sha256:
        raise FormatError(
            f"{where}: the rebuilt finalized model has SHA-256 {digest}, the header says {finalized_sha256}"
        )
    return model, finalized


def _header_bytes(content: bytes, where: str) -> tuple[bytes, int]:
    """Return the header and the offset of the data section (rules 1 to 6)."""
    magic = content[: len(MAGIC)]
    if magic != MAGIC[: len(magic)]:
        hint = "; its first bytes look changed by a transfer in text mode" if b"CSQ" in magic else ""
        raise FormatError(f"{where} is not a csq file (it begins with {magic.hex(' ')}){hint}")
    if len(content) < PREAMBLE.size:
        raise FormatError(f"{where}: truncated at byte {len(content)}, the preamble has {PREAMBLE.size} bytes")
    _, version, length, crc, reserved = PREAMBLE.unpack_from(content)
    if version != VERSION:
        raise FormatError(f"{where}: csq version {version}, this csqtool reads {VERSION}; use a newer csqtool")
    if length > MAX_HEADER_BYTES or length % ALIGNMENT:
        raise FormatError(
            f"{where}: header length {length} at byte 12, expected a multiple of {ALIGNMENT} up to {MAX_HEADER_BYTES}"
        )
    if reserved:
        raise FormatError(f"{where}: the reserved field at byte 20 holds {reserved}, expected 0")
    data_start = PREAMBLE.size + length
    if data_start > len(content):
        raise FormatError(f"{where}: truncated at byte {len(content)}, the header ends at byte {data_start}")
    header = content[PREAMBLE.size : data_start]
    if (found := zlib.crc32(header)) != crc:
        raise FormatError(f"{where}: damaged header: CRC-32 is {found:08x}, byte 16 says {crc:08x}")
    return header, data_start


def _parse_header(header: bytes, where: str) -> tuple[str, str, list[Entry]]:
    """Return the header's SHA-256, metadata and tensor entries (rules 7 to 14)."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document: dict[str, Any] = {}
        for key, value in pairs:
            if key in document:
                raise FormatError(f"{where}: the header has the key {key!r} twice")
            document[key] = value
        return document

    try:
        document = json.loads(header.decode(), object_pairs_hook=unique)
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
    if not _is_text(tensor["name"]) or tensor["name"] == "__metadata__":
        raise FormatError(f"{what}: bad name {tensor['name']!r:.100}")
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


def _check_layout(entries: list[Entry], content: bytes, data_start: int, where: str) -> None:
    """Check that the tensors tile the data section exactly, in the header's order (rules 15 and 16)."""
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


def _decode(entry: Entry, content: bytes, data_start: int, where: str) -> NDArray[Any]:
    """Return the tensor of an entry whose place has been checked (rules 17 and 18)."""
    start = data_start + entry.offset
    what = f"{where}: tensor {entry.name!r} at byte {start}"
    stored = memoryview(content)[start : start + entry.length]
    if (found := zlib.crc32(stored)) != entry.crc32:
        raise FormatError(f"{what}: damaged: CRC-32 is {found:08x}, the header says {entry.crc32:08x}")
    dtype = DTYPES[entry.dtype].newbyteorder("=")
    if entry.encoding == "raw":
        if entry.dtype == "BOOL" and stored.tobytes().translate(None, b"\0\1"):
            raise FormatError(f"{what}: a boolean is neither 0 nor 1")
        flat = np.frombuffer(stored, DTYPES[entry.dtype]).astype(dtype)
        return flat.reshape(entry.shape)
    elements = math.prod(entry.shape)
    used_bits = elements * entry.bits % 8  # of the last byte; 0: all
    if used_bits and stored[-1] >> used_bits:
        raise FormatError(f"{what}: the padding bits of its last byte are not zero")
    return unpack_integers(stored, elements, entry.bits, dtype).reshape(entry.shape)


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
