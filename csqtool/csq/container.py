"""The container: preamble, tensor table, metadata, graph, data. `docs/csq-format.md` is normative."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from csqtool.csq import context
from csqtool.csq.entry import (
    DTYPE_CODES,
    DTYPES,
    MAX_EXPANSION,
    MAX_RANK,
    MAX_TENSORS,
    Encoding,
    Entry,
    encoding_problem,
    name_problem,
    shape_problem,
)
from csqtool.errors import ExportError, FormatError

# First byte above ASCII: no text file. CR LF, EOF and LF: a transfer in text mode changes them.
MAGIC = b"\x89CSQ\r\n\x1a\n"
VERSION = 2
CONTEXT_VERSION = 3  # of files with context-coded tensors
ALIGNMENT = 8
# Magic, version, tensors; stored bytes of table, metadata, graph; inflated bytes of metadata, graph; reserved;
# SHA-256 of the finalized file; CRC-32 of table, metadata, graph, and of the preamble up to here.
PREAMBLE = struct.Struct("<8sIIIIIIII32sIIII")
FIXED = struct.Struct("<BBBBIQ")  # dtype, encoding, bits, rank, CRC-32, length; then dimensions and name

MAX_TABLE_BYTES = 32 << 20  # 65,536 tensors with long names
MAX_PART_BYTES = 1 << 30  # metadata and graph; real ones are below 1 MB
INFLATED_FLOOR = 1 << 20  # beyond four times the file's own size, what they may inflate to
PARSED_BYTES = 96  # what json.loads takes at most for one value beside its text
PARSED_FLOOR = 64 << 20  # beyond four times the file's own size, what the metadata may take when parsed

_DTYPE_LIST = list(DTYPES)


@dataclass(frozen=True)
class Container:
    """What a file holds besides the tensors' bytes.

    Attributes:
        finalized_sha256: of the finalized file, 64 hex digits.
        metadata: the JSON text of the finalized file.
        entries: the tensors, in the order of their bytes.
        graph: the recipe of an ONNX file, inflated; None without one.
        metadata_start: the byte at which the metadata's zlib stream begins.
        graph_start: the byte at which the graph's zlib stream begins, or would begin.
    """

    finalized_sha256: str
    metadata: str
    entries: tuple[Entry, ...]
    graph: bytes | None
    metadata_start: int
    graph_start: int


def assemble(
    tensors: Sequence[tuple[Entry, bytes]], metadata: str, finalized_sha256: str, graph: bytes | None
) -> bytes:
    """Return a file; tensors are sorted by name; `start` and `crc32` of the entries are ignored.

    Raises:
        ExportError: a part exceeds the limits of the format.
    """
    table = b"".join(_table_row(entry, stored) for entry, stored in tensors)
    version = CONTEXT_VERSION if any(is_context_coded(*tensor) for tensor in tensors) else VERSION
    parts = [table, zlib.compress(metadata.encode(), 9), b"" if graph is None else zlib.compress(graph, 9)]
    inflated = [len(metadata.encode()), len(graph or b"")]
    for what, size, limit in (
        ("bytes of tensor table", len(table), MAX_TABLE_BYTES),
        ("bytes of metadata", inflated[0], MAX_PART_BYTES),
        ("bytes of graph", inflated[1], MAX_PART_BYTES),
    ):
        if size > limit:
            raise ExportError(f"csq: {size} {what}, at most {limit}")
    content = bytearray(
        PREAMBLE.pack(
            MAGIC, version, len(tensors), *map(len, parts), *inflated, 0, bytes.fromhex(finalized_sha256),
            *map(zlib.crc32, parts), 0,
        )
    )  # fmt: skip
    check_count(len(tensors))
    content[-4:] = zlib.crc32(content[:-4]).to_bytes(4, "little")
    for part in (*parts, *(stored for _, stored in tensors)):
        content += part + bytes(-len(part) % ALIGNMENT)
    for what, size in zip(("metadata", "graph"), inflated, strict=True):
        if size > INFLATED_FLOOR + 4 * len(content):
            raise ExportError(f"csq: {size} bytes of {what} are too many for a file of {len(content)} bytes")
    if not is_document_small(metadata, len(content)):
        raise ExportError(f"csq: the metadata hold too many values for a file of {len(content)} bytes")
    return bytes(content)


def is_context_coded(entry: Entry, stored: bytes | memoryview) -> bool:
    """Tell whether a tensor's elements, or those of its channels that are stored, are context-coded."""
    pruned = entry.encoding is Encoding.PRUNED and stored[:1] == bytes([Encoding.CONTEXT])
    return pruned or entry.encoding is Encoding.CONTEXT


def check_count(tensors: int) -> None:
    """Check that a file can hold so many tensors.

    Raises:
        ExportError: it cannot.
    """
    if tensors > MAX_TENSORS:
        raise ExportError(f"csq: {tensors} tensors, at most {MAX_TENSORS}")


def is_document_small(metadata: str, file_bytes: int) -> bool:
    """Tell whether the metadata, parsed, take no more memory than a file of this size may."""
    values = sum(metadata.count(c) for c in ",[{:")
    return values * PARSED_BYTES <= 4 * file_bytes + PARSED_FLOOR


def _table_row(entry: Entry, stored: bytes) -> bytes:
    name = entry.name.encode()
    return (
        FIXED.pack(
            DTYPE_CODES[entry.dtype], entry.encoding, entry.bits, len(entry.shape), zlib.crc32(stored), len(stored)
        )
        + struct.pack(f"<{len(entry.shape)}I", *entry.shape)
        + bytes([len(name)])
        + name
    )


def parse(content: memoryview, where: str) -> Container:
    """Return all of a file but its tensors' bytes, which are not read.

    Raises:
        FormatError: the content is no `.csq` file of this version, or breaks a rule of structure (1 to 10 of the
            specification).
    """
    version = _checked_version(content, where)
    if len(content) < PREAMBLE.size:
        raise FormatError(f"{where}: truncated at byte {len(content)}, the preamble has {PREAMBLE.size} bytes")
    fields = PREAMBLE.unpack_from(content)
    count, table_size, metadata_size, graph_size, metadata_inflated, graph_inflated = fields[2:8]
    reserved, digest, table_crc, metadata_crc, graph_crc, preamble_crc = fields[8:]
    if zlib.crc32(content[: PREAMBLE.size - 4]) != preamble_crc:
        raise FormatError(f"{where}: damaged preamble: its CRC-32 differs from that at byte {PREAMBLE.size - 4}")
    if reserved:
        raise FormatError(f"{where}: the reserved field at byte 36 holds {reserved}, expected 0")
    if count > MAX_TENSORS or table_size > MAX_TABLE_BYTES:
        raise FormatError(
            f"{where}: {count} tensors in a table of {table_size} bytes at byte 12, "
            f"at most {MAX_TENSORS} in {MAX_TABLE_BYTES}"
        )
    position = PREAMBLE.size
    parts = []
    for what, size, crc in (
        ("tensor table", table_size, table_crc),
        ("metadata", metadata_size, metadata_crc),
        ("graph", graph_size, graph_crc),
    ):
        end = _padded_end(content, position, size, f"{where}: {what} at byte {position}")
        part = content[position : position + size]
        if (found := zlib.crc32(part)) != crc:
            raise FormatError(f"{where}: {what} at byte {position}: damaged: CRC-32 is {found:08x}, expected {crc:08x}")
        parts.append((position, part))
        position = end
    (table_start, table), (metadata_start, metadata), (graph_start, graph) = parts

    _check_tensors(content, _rows(table, count, table_start, position, where), position, version, where)
    text = _inflate(metadata, metadata_inflated, len(content), f"{where}: metadata at byte {metadata_start}")
    try:
        document = text.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: metadata at byte {metadata_start}: not UTF-8: {error}") from error
    recipe = None
    if graph_size or graph_inflated:
        recipe = _inflate(graph, graph_inflated, len(content), f"{where}: graph at byte {graph_start}")
    entries = tuple(_rows(table, count, table_start, position, where))
    return Container(digest.hex(), document, entries, recipe, metadata_start, graph_start)


def _check_tensors(content: memoryview, entries: Iterator[Entry], start: int, version: int, where: str) -> None:
    """Check everything once without keeping it: a bad table never takes more memory than one row.

    Args:
        content: the file.
        entries: its tensors.
        start: where the first one begins.
        version: the file's.
        where: the file's name, for messages.
    """
    decoded_bytes = coded = 0
    end = start
    for entry in entries:
        end = _padded_end(content, entry.start, entry.length, f"{where}: tensor {entry.name!r} at byte {entry.start}")
        decoded_bytes += entry.decoded_bytes
        if is_context_coded(entry, content[entry.start : entry.start + entry.length]):
            coded += entry.elements
    if trailing := len(content) - end:
        raise FormatError(f"{where}: {trailing} trailing bytes at byte {end}")
    if decoded_bytes > MAX_EXPANSION * len(content):
        raise FormatError(
            f"{where}: its tensors would take {decoded_bytes} bytes, more than {MAX_EXPANSION} times the file's size"
        )
    if (version == CONTEXT_VERSION) != (coded > 0):
        raise FormatError(f"{where}: {coded} context-coded elements in a file of version {version}")
    if coded > context.MAX_ELEMENTS:
        raise FormatError(f"{where}: {coded} context-coded elements, at most {context.MAX_ELEMENTS}")


def _checked_version(content: memoryview, where: str) -> int:
    """Return the version, after the magic and itself have been checked."""
    magic = bytes(content[: len(MAGIC)])
    if magic != MAGIC[: len(magic)] or not magic:
        hint = "; its first bytes look changed by a transfer in text mode" if b"CSQ" in magic else ""
        begin = f"begins with {magic.hex(' ')}" if magic else "is empty"
        raise FormatError(f"{where} is not a csq file (it {begin}){hint}")
    if len(content) < len(MAGIC) + 4:
        raise FormatError(f"{where}: truncated at byte {len(content)}, in the preamble")
    version = int.from_bytes(content[8:12], "little")
    if version not in (VERSION, CONTEXT_VERSION):
        newer = "; a newer csqtool may know it" if version > CONTEXT_VERSION else ""
        known = f"{VERSION} and {CONTEXT_VERSION}"
        raise FormatError(f"{where}: csq version {version} at byte 8, this csqtool reads {known}{newer}")
    return version


def _padded_end(content: memoryview, start: int, length: int, what: str) -> int:
    """Return where the part after [start, start + length) begins; the padding up to there is checked."""
    end = start + length
    padded = end + -end % ALIGNMENT
    if padded > len(content):
        raise FormatError(f"{what}: truncated: it ends at byte {padded}, the file has {len(content)}")
    if any(content[end:padded]):
        raise FormatError(f"{what}: the padding after it, at byte {end}, is not zero")
    return padded


def _inflate(part: memoryview, size: int, file_bytes: int, what: str) -> bytes:
    """Return the `size` bytes that a zlib stream holds; never more are made."""
    if size > min(MAX_PART_BYTES, INFLATED_FLOOR + 4 * file_bytes):
        raise FormatError(f"{what}: it claims to inflate to {size} bytes, too many for a file of {file_bytes}")
    inflater = zlib.decompressobj()
    try:
        inflated = inflater.decompress(part, size + 1)  # 0 would mean no limit
    except zlib.error as error:
        raise FormatError(f"{what}: not a zlib stream: {error}") from error
    if len(inflated) != size or not inflater.eof or inflater.unused_data:
        raise FormatError(f"{what}: it does not inflate to exactly {size} bytes")
    return inflated


def _rows(table: memoryview, count: int, table_start: int, data_start: int, where: str) -> Iterator[Entry]:
    """Yield the rows of the table, each checked by itself and against the one before it."""
    position, start, before = 0, data_start, b""
    for number in range(count):
        what = f"{where}: tensor {number} of the table, at byte {table_start + position}"
        if position + FIXED.size > len(table):
            raise FormatError(f"{what}: the table ends inside it")
        dtype, encoding, bits, rank, crc32, length = FIXED.unpack_from(table, position)
        position += FIXED.size
        if rank > MAX_RANK:
            raise FormatError(f"{what}: shape of {rank} axes, at most {MAX_RANK}")
        if position + 4 * rank + 1 > len(table):
            raise FormatError(f"{what}: the table ends inside it")
        shape = struct.unpack_from(f"<{rank}I", table, position)
        position += 4 * rank
        name_end = position + 1 + table[position]
        if name_end > len(table):
            raise FormatError(f"{what}: the table ends inside its name")
        raw_name = bytes(table[position + 1 : name_end])
        position = name_end
        try:
            name = raw_name.decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{what}: its name is not UTF-8: {error}") from error
        if (problem := name_problem(name)) is not None:
            raise FormatError(f"{what}: bad name {name!r:.100}: {problem}")
        what = f"{what} ({name!r})"
        if raw_name <= before:
            raise FormatError(f"{what}: the name occurs twice, or names do not ascend")
        if dtype >= len(_DTYPE_LIST) or encoding >= len(Encoding):
            raise FormatError(f"{what}: unknown dtype {dtype} or encoding {encoding}")
        if (problem := shape_problem(shape)) is not None:
            raise FormatError(f"{what}: {problem}")
        entry = Entry(name, _DTYPE_LIST[dtype], shape, Encoding(encoding), bits, start, length, crc32)
        if (problem := encoding_problem(entry)) is not None:
            raise FormatError(f"{what}: {problem}")
        before = raw_name
        start += length + -length % ALIGNMENT
        yield entry
    if position != len(table):
        raise FormatError(f"{where}: {len(table) - position} bytes too many in the table at {table_start + position}")
