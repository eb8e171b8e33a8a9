"""Handmade `.csq` files, from a list of rows, and what reads them."""

import contextlib
import hashlib
import struct
import tracemalloc
import zlib

import pytest

from csqtool.csq import CsqFile
from csqtool.errors import FormatError
from csqtool.verifying.csq_decoder import decode
from tests.support.csq_files import GOLDEN, MAGIC

SMALL = (GOLDEN / "v2-small.csq").read_bytes()


def checked(content, *, where):
    return CsqFile(content, where=where).model()


READERS = pytest.mark.parametrize("read", [checked, decode], ids=["codec", "verifier"])


def assert_rejected(read, content, message):
    with pytest.raises(FormatError, match=f"(?s)^x.*({message})"):
        read(bytes(content), where="x")


DTYPES = ["BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16", "F32", "F64", "C64"]


def row(name, dtype, encoding, bits, shape, stored, **fields):
    row = {
        "name": name if isinstance(name, bytes) else name.encode(),
        "dtype": DTYPES.index(dtype),
        "encoding": encoding,
    }
    return row | {"bits": bits, "shape": shape, "stored": stored, "length": len(stored)} | fields


def table_of(rows):
    return b"".join(
        struct.pack(
            "<BBBBIQ", r["dtype"], r["encoding"], r["bits"], r.get("rank", len(r["shape"])),
            r.get("crc32", zlib.crc32(r["stored"])), r["length"],
        ) + struct.pack(f"<{len(r['shape'])}I", *r["shape"]) + bytes([r.get("name_size", len(r["name"]))]) + r["name"]
        for r in rows
    )  # fmt: skip


def padded(part):
    return part + bytes(-len(part) % 8)


def assemble(rows, metadata=b"{}", digest=bytes(32), **fields):
    """Return a file with the checksums it needs: only what `fields` or the rows make wrong is wrong."""
    table = fields.get("table", table_of(rows))
    parts = [table, fields.get("metadata_part", zlib.compress(metadata, 9)), fields.get("graph_part", b"")]
    preamble = {
        "magic": MAGIC, "version": 2, "count": len(rows), "table_bytes": len(table), "metadata_bytes": len(parts[1]),
        "graph_bytes": len(parts[2]), "metadata_size": len(metadata), "graph_size": 0, "reserved": 0, "digest": digest,
        "table_crc": zlib.crc32(parts[0]), "metadata_crc": zlib.crc32(parts[1]), "graph_crc": zlib.crc32(parts[2]),
    }  # fmt: skip
    head = struct.pack("<8sIIIIIIII32sIII", *(preamble | {k: v for k, v in fields.items() if k in preamble}).values())
    head += struct.pack("<I", fields.get("preamble_crc", zlib.crc32(head)))
    return head + b"".join(padded(part) for part in (*parts, *(r["stored"] for r in rows)))


def disassemble(content):
    """Return rows, metadata and digest of a right file, by the specification alone."""
    count, table_bytes, metadata_bytes, graph_bytes = struct.unpack_from("<IIII", content, 12)
    at, rows = 88, []
    for _ in range(count):
        dtype, encoding, bits, rank, _, length = struct.unpack_from("<BBBBIQ", content, at)
        shape = struct.unpack_from(f"<{rank}I", content, at + 16)
        at += 16 + 4 * rank
        rows.append({"name": content[at + 1 : at + 1 + content[at]], "dtype": dtype, "encoding": encoding, "bits": bits,
                     "shape": shape, "length": length})  # fmt: skip
        at += 1 + content[at]
    at = 88 + -(-table_bytes // 8) * 8
    metadata = zlib.decompress(content[at : at + metadata_bytes])
    at += -(-metadata_bytes // 8) * 8 + -(-graph_bytes // 8) * 8
    for r in rows:
        r["stored"] = content[at : at + r["length"]]
        at += -(-r["length"] // 8) * 8
    return rows, metadata, content[40:72]


def sealed(rows, metadata, **graph):
    """Return a file that is right down to its SHA-256, with a recipe beside it."""
    digest = hashlib.sha256(b"".join(CsqFile(assemble(rows, metadata), where="x").finalized())).digest()
    return assemble(rows, metadata, digest, **graph)


def small_with(name, **fields):
    rows, metadata, digest = disassemble(SMALL)
    rows = [r | fields if r["name"] == name.encode() else r for r in rows]
    return assemble(rows, metadata, digest)


def integers(bits, encoding, stored, count, dtype="I8", more=False, **fields):
    """Return a file of one tensor; `more` adds bytes, so that the file justifies as many elements."""
    rest = [row("z", "U8", 0, 8, (count // 60 + 1,), bytes(count // 60 + 1))] if more else []
    return assemble([row("w", dtype, encoding, bits, (count,), stored, **fields), *rest])


@contextlib.contextmanager
def memory_within_four_times(content):
    """Fail where more than four times the file and a fixed 1.5 MB are taken at any moment."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 4 * len(content) + 1_500_000
    finally:
        tracemalloc.stop()


def by_codec(content):
    file = CsqFile(content, where="x")
    return {name: file.tensor(name) for name in file.entries}


def by_decoder(content):
    return decode(content, where="x")[0]
