"""Version 2 of the `.csq` format: two readers, written apart, against every rule of the specification."""

import contextlib
import hashlib
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import invoke
from csq_files import (
    GOLDEN,
    MAGIC,
    WRONG_METADATA,
    brute_force_stream,
    golden_models,
    golden_onnx,
    layers_of,
    one_layer,
    pruned,
    small_model,
    spread,
    with_right_checksums,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from csqtool.errors import ExportError, FormatError, InputError
from csqtool.finalized_file import serialize, to_bytes, to_tensors
from csqtool.verify.csq_decoder import decode, graph_part
from csqtool.verify.csq_graph import rebuild
from exporters.csq import CsqFile, graph, open_csq, pack, unpack
from exporters.csq.entry import Encoding
from exporters.csq.rans import encode as rans_encode
from exporters.csq.rans import fitted

SMALL = (GOLDEN / "v2-small.csq").read_bytes()


def checked(content, *, where):
    return CsqFile(content, where=where).model()


READERS = pytest.mark.parametrize("read", [checked, decode], ids=["exporter", "decoder"])


def assert_rejected(read, content, message):
    with pytest.raises(FormatError, match=f"(?s)^x.*({message})"):
        read(bytes(content), where="x")


# --- handmade files: a list of rows, then the bytes -------------------------------------------------------

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
    """Return a file with the checksums it needs: only what `fields` or the rows break is broken."""
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


def small_with(name, **fields):
    rows, metadata, digest = disassemble(SMALL)
    rows = [r | fields if r["name"] == name.encode() else r for r in rows]
    return assemble(rows, metadata, digest)


def integers(bits, encoding, stored, count, dtype="I8", more=False, **fields):
    """Return a file of one tensor; `more` adds bytes, so that the file justifies as many elements."""
    rest = [row("z", "U8", 0, 8, (count // 60 + 1,), bytes(count // 60 + 1))] if more else []
    return assemble([row("w", dtype, encoding, bits, (count,), stored, **fields), *rest])


# --- golden files and round trips -------------------------------------------------------------------------


@pytest.mark.parametrize("name", golden_models())
def test_a_golden_file_of_version_2_is_read(name):
    content = (GOLDEN / f"{name}.csq").read_bytes()
    model, encoding = golden_models()[name]
    assert unpack(content, where="x") == to_bytes(model)
    tensors, metadata, digest = decode(content, where="x")
    wanted, wanted_metadata = to_tensors(model)
    assert (metadata, digest) == (wanted_metadata, hashlib.sha256(to_bytes(model)).hexdigest())
    assert {k: (v.dtype, v.tobytes()) for k, v in tensors.items()} == {
        k: (v.dtype, v.tobytes()) for k, v in wanted.items()
    }
    again = CsqFile(pack(model, encoding=encoding), where="x").entries
    assert again == {k: v for k, v in CsqFile(content, where="x").entries.items() if again[k].crc32 == v.crc32}


def test_the_golden_files_hold_every_encoding_and_dtype():
    found = [e for path in GOLDEN.glob("v2-*") for e in CsqFile(path.read_bytes(), where="x").entries.values()]
    assert {e.encoding for e in found} == set(Encoding)
    assert {e.dtype for e in found} == set(DTYPES)
    assert {e.bits for e in found if e.encoding is Encoding.DENSE} == set(range(1, 10))


def test_a_file_built_from_the_specification_alone_is_the_writers():
    assert assemble(*disassemble(SMALL)) == SMALL
    assert disassemble(SMALL)[0][3]["stored"] == brute_force_stream([-4, 3, 0, -1, 2, 1, -3], 3)


@st.composite
def quantized(draw):
    bits = draw(st.integers(1, 9))
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    if bits == 9:
        low = -255
    shape = draw(st.lists(st.integers(1, 9), max_size=4).map(tuple))
    levels = draw(st.lists(st.integers(low, high), min_size=1, max_size=12) | st.just([0]) | st.just([low, high]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    q = rng.choice(np.array(levels, np.int16), shape) if draw(st.booleans()) else rng.integers(low, high + 1, shape)
    q = np.asarray(q).astype(np.int8 if bits <= 8 and draw(st.booleans()) else np.int16)
    if q.ndim >= 2:
        q = pruned(q, draw(st.lists(st.integers(0, q.shape[0] - 1))), draw(st.lists(st.integers(0, q.shape[1] - 1))))
    return np.asfortranarray(q) if draw(st.booleans()) else q


@settings(deadline=None)  # other work on the machine is no failure
@given(st.lists(quantized(), min_size=1, max_size=3), st.sampled_from(["smallest", "dense"]))
def test_any_integers_come_back_bit_for_bit_from_both_readers(integers, encoding):
    model = layers_of(*integers)
    content = pack(model, encoding=encoding)
    assert unpack(content, where="x") == to_bytes(model)
    tensors, _, _ = decode(content, where="x")
    assert all(tensors[f"w{i}"].tobytes() == q.tobytes() for i, q in enumerate(integers))
    if encoding == "smallest":
        assert len(content) <= len(pack(model, encoding="dense"))


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 9), st.integers(1, 70_000), st.floats(0.5, 3), st.integers(0, 2**32))
def test_entropy_coded_streams_of_any_length_and_skew_come_back(bits, count, width, seed):
    half = 1 << (bits - 1)
    q = np.random.default_rng(seed).normal(0, width * half / 2, count).round().clip(-half, half - 1).astype(np.int16)
    q[0] = -1 if (q == q[0]).all() and q[0] != -1 else q[0]
    if count == 1 or (q == q[0]).all():
        return
    counts = np.bincount(q - q.min())
    content = integers(bits, 4, rans_encode(q, fitted(int(q.min()), counts)), count, "I16")
    assert (CsqFile(content, where="x").tensor("w") == q).all()
    assert (decode(content, where="x")[0]["w"] == q).all()


@READERS
def test_the_specifications_example_of_a_pruned_tensor_is_read(read):
    content = assemble([row("w", "I8", 6, 4, (2, 3), bytes.fromhex("010205d5"))])
    found = CsqFile(content, where="x").tensor("w") if read is checked else read(content, where="x")[0]["w"]
    assert found.tolist() == [[0, 0, 0], [5, 0, -3]]


@pytest.mark.parametrize("large", [(70_000, 9), (3, 70_000), (3, 5, 70_000)])
def test_pruned_tensors_of_several_blocks_come_back_from_both_readers(large):
    q = pruned(np.random.default_rng(0).normal(0, 2, large).round().astype(np.int8), [1, large[0] - 1], [0, 4])
    content = pack(one_layer(q))
    assert CsqFile(content, where="x").entries["w"].encoding is Encoding.PRUNED
    assert (CsqFile(content, where="x").tensor("w") == q).all()
    assert (decode(content, where="x")[0]["w"] == q).all()


def test_channels_of_zeros_cost_next_to_nothing():
    q = np.random.default_rng(0).normal(0, 2, (64, 64, 3, 3)).round().astype(np.int8)
    half = len(pack(one_layer(q[:32, :32])))
    assert len(pack(one_layer(pruned(q, range(32, 64), range(32, 64))))) < half + 100


@settings(deadline=None)
@given(st.binary(min_size=0, max_size=64), st.sampled_from(["<f4", "<f2", "<i8", "u1"]))
def test_other_tensors_come_back_bit_for_bit_nan_payloads_included(raw, dtype):
    values = np.frombuffer(raw[: len(raw) // 8 * 8] or bytes(8), dtype)
    model = one_layer(np.array([1, -1], np.int8), extra=values)
    assert unpack(pack(model), where="x") == to_bytes(model)
    assert decode(pack(model), where="x")[0]["extra"].tobytes() == values.tobytes()


@pytest.mark.parametrize("bits", range(1, 9))
def test_normal_weights_take_their_entropy_and_less_than_lzma(bits):
    import lzma

    q = np.random.default_rng(bits).normal(0, (1 << bits) / 6, 200_000).round()
    q = q.clip(-(1 << (bits - 1)), (1 << (bits - 1)) - 1).astype(np.int8)
    share = np.unique(q, return_counts=True)[1] / q.size
    entropy = -(share * np.log2(share)).sum() * q.size / 8
    size = len(pack(one_layer(q)))
    assert size <= 1.01 * entropy + 2 * 96 + 4096
    assert size <= len(pack(one_layer(q), encoding="dense"))
    assert size < len(lzma.compress(q.tobytes(), preset=6)) + 1024


@pytest.mark.parametrize("bits", range(1, 9))
def test_normal_weights_take_less_than_zstd_makes_of_their_bytes(bits):
    if shutil.which("zstd") is None:
        pytest.skip("zstd is not installed")
    q = np.random.default_rng(bits).normal(0, (1 << bits) / 6, 200_000)
    q = np.floor(q) if bits == 1 else q.round()
    q = q.clip(-(1 << (bits - 1)), (1 << (bits - 1)) - 1).astype(np.int8)
    done = subprocess.run(["zstd", "-19", "-c", "-q"], input=q.tobytes(), capture_output=True, check=True)
    content = pack(one_layer(q))
    assert CsqFile(content, where="x").entries["w"].length < len(done.stdout)
    # The whole file, too, with table, metadata and scale; single random bits leave nothing to gain that would pay them.
    assert len(content) < len(done.stdout) or bits == 1


# --- damage ------------------------------------------------------------------------------------------------


@READERS
def test_any_flipped_bit_is_noticed(read):
    for bit in range(len(SMALL) * 8):
        changed = bytearray(SMALL)
        changed[bit // 8] ^= 1 << bit % 8
        assert_rejected(read, changed, ": | is not a csq file")


@READERS
@pytest.mark.parametrize("name", ["v2-small", "v2-ternary", "v2-graph"])
def test_any_truncation_is_noticed(read, name):
    content = (GOLDEN / f"{name}.csq").read_bytes()
    for size in range(len(content)):
        assert_rejected(read, content[:size], "truncated|not a csq file|ends at byte|damaged")


@READERS
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"magic": b"\x93NUMPY\x01\x00"}, "not a csq file"),
        ({"magic": b"\x89CSQ\n\x1a\n\x01"}, "not a csq file"),
        ({"version": 0}, "csq version 0"),
        ({"version": 3}, "csq version 3"),
        ({"version": 2**32 - 1}, "csq version 4294967295"),
        ({"preamble_crc": 1}, "damaged preamble"),
        ({"reserved": 1}, "reserved field"),
        ({"count": 2**32 - 1}, "4294967295 tensors"),
        ({"count": 65537}, "65537 tensors"),
        ({"count": 2}, "tensor 1 of the table.*ends inside"),
        ({"count": 0}, "bytes too many in the table"),
        ({"table_bytes": 2**32 - 1}, "table"),
        ({"table_bytes": 1 << 25}, "table at byte 88: truncated"),
        ({"metadata_bytes": 2**31}, "metadata at byte .*: truncated"),
        ({"graph_bytes": 2**31}, "graph at byte .*: truncated"),
        ({"table_crc": 1}, "table at byte 88: damaged"),
        ({"metadata_crc": 1}, "metadata at byte .*: damaged"),
        ({"graph_crc": 1}, "graph at byte .*: damaged"),
        ({"metadata_size": 2**31}, "metadata.*2147483648"),
        ({"metadata_size": 3}, "metadata.*inflate"),
        ({"graph_size": 1}, "graph.*zlib|graph.*inflate"),
        ({"metadata_part": b"not zlib"}, "metadata.*not a zlib stream"),
        ({"metadata_part": zlib.compress(b"{}") + b"x"}, "metadata.*inflate"),
        ({"metadata_part": zlib.compress(bytes(1 << 24)), "metadata_size": 1 << 24}, "metadata.*16777216"),
        ({"metadata": b"\xff\xfe"}, "metadata.*not UTF-8"),
    ],
)  # fmt: skip
def test_a_wrong_preamble_or_part_is_rejected(read, fields, message):
    assert_rejected(read, assemble([row("w", "I8", 1, 3, (2,), b"\x05")], **fields), message)


@READERS
@pytest.mark.parametrize(
    "name",
    [
        b"",
        b".",
        b"..",
        b"a/b",
        b"a\\b",
        b"a\0b",
        b"\n",
        b"\x7f",
        b"__metadata__",
        b"\xff",
        b"\xed\xa0\x80",
        b"\xc0\x80",
    ],
    ids=repr,
)
def test_bad_names_are_rejected(read, name):
    assert_rejected(read, assemble([row(name, "U8", 0, 8, (1,), b"x")]), "tensor 0 of the table, at byte 88.*name")


@READERS
def test_a_name_that_stands_twice_or_out_of_order_is_rejected(read):
    for names in ("aa", "ba", ("é", "z")):
        rows = [row(name, "U8", 0, 8, (1,), b"x") for name in names]
        assert_rejected(read, assemble(rows), "twice")


ROWS = {
    "a name longer than the table": (row("w", "U8", 0, 8, (1,), b"x", name_size=200), "table ends inside"),
    "more axes than there are": (row("w", "U8", 0, 8, (1,), b"x", rank=32), "table ends inside"),
    "33 axes": (row("w", "U8", 0, 8, (1,) * 33, b"x"), "33 axes"),
    "a dimension of zero": (row("w", "U8", 0, 8, (0,), b""), "shape"),
    "a zero that hides an overflow": (row("w", "U8", 0, 8, (0, 2**32 - 1), b""), "shape"),
    "2^64 elements": (row("w", "U8", 0, 8, (2**31, 2**31, 4), b""), "elements"),
    "2^1024 elements": (row("w", "U8", 0, 8, (2**32 - 1,) * 32, b""), "elements"),
    "an unknown dtype": (row("w", "U8", 0, 8, (1,), b"x") | {"dtype": 13}, "dtype 13"),
    "an unknown encoding": (row("w", "I8", 7, 8, (1,), b"x"), "encoding 7"),
    "raw of another width": (row("w", "F32", 0, 16, (1,), b"xx"), "bits"),
    "half of float64": (row("w", "F64", 5, 16, (1,), b"xx"), "half|F32"),
    "half of 32 bits": (row("w", "F32", 5, 32, (1,), b"xxxx"), "half|F32|16"),
    "dense float": (row("w", "F32", 1, 3, (1,), b"x"), "I8"),
    "0 bits": (row("w", "I8", 1, 0, (1,), b""), "bits"),
    "10 bits": (row("w", "I16", 1, 10, (1,), b"xx"), "bits"),
    "9 bits in a byte": (row("w", "I8", 1, 9, (1,), b"xx"), "bits"),
    "3-bit ternary": (row("w", "I8", 2, 3, (1,), b"\1"), "bits"),
    "a length below the bits": (row("w", "I8", 1, 3, (8,), b"xx"), "length"),
    "a length above the bits": (row("w", "I8", 1, 3, (8,), b"xxxx"), "length"),
    "a length past the end": (row("w", "U8", 0, 8, (2**31,), b"", length=2**31), "truncated"),
    "a length of 2^64 - 1": (row("w", "I8", 4, 3, (8,), b"", length=2**64 - 1), "truncated"),
    "a length of 2^63": (row("w", "I8", 3, 3, (8,), b"", length=2**63), "truncated"),
    "padding bits": (row("w", "I8", 1, 3, (2,), b"\x45"), "padding bits"),
    "a wrong checksum": (row("w", "I8", 1, 3, (2,), b"\x05", crc32=1), "damaged"),
    "a boolean of 2": (row("w", "BOOL", 0, 8, (2,), b"\1\2"), "neither 0 nor 1"),
    "a ternary byte of 243": (row("w", "I8", 2, 2, (5,), b"\xf3"), "242"),
    "ternary padding": (row("w", "I8", 2, 2, (2,), b"\x09"), "padding"),
    "a 1 in one bit": (row("w", "I8", 2, 1, (1,), b"\2"), "fit"),
    "a codebook without bytes": (row("w", "I8", 3, 2, (1,), b""), "length|cut|short"),
    "a codebook cut short": (row("w", "I8", 3, 2, (1,), b"\3\0\0"), "length|cut|short"),
    "a codebook with bytes left": (row("w", "I8", 3, 2, (1,), b"\0\0\0\0"), "length"),
    "levels that descend": (row("w", "I8", 3, 3, (1,), b"\1\1\0\0\0\0"), "levels"),
    "a level twice": (row("w", "I8", 3, 3, (1,), b"\1\1\0\1\0\0"), "levels"),
    "a level beyond the bits": (row("w", "I8", 3, 2, (1,), b"\0\2\0"), "levels"),
    "pruned with one axis": (row("w", "I8", 6, 3, (2,), b"\1\1\1"), "two axes"),
    "pruned without bytes": (row("w", "I8", 6, 3, (1, 1), b""), "short"),
    "pruned channels cut short": (row("w", "I8", 6, 3, (9, 1), b"\1\1\0"), "short"),
    "pruned, pruned again": (row("w", "I8", 6, 3, (1, 1), b"\6\1\1\1"), "encoding 6"),
    "pruned, raw": (row("w", "I8", 6, 3, (1, 1), b"\0\1\1\1"), "encoding 0"),
    "pruned padding of rows": (row("w", "I8", 6, 3, (1, 2), b"\1\3\1\1"), "padding"),
    "pruned padding of columns": (row("w", "I8", 6, 3, (2, 1), b"\1\1\3\1"), "padding"),
    "pruned to nothing": (row("w", "I8", 6, 3, (2, 2), b"\1\0\1"), "no channel"),
    "pruned dense too short": (row("w", "I8", 6, 8, (2, 2), b"\1\3\2\1"), "length"),
    "pruned dense too long": (row("w", "I8", 6, 8, (2, 2), b"\1\1\2\1\1"), "length"),
    "pruned ternary too long": (row("w", "I8", 6, 2, (2, 2), b"\2\1\2\1\1"), "length"),
    "pruned ternary of 3 bits": (row("w", "I8", 6, 3, (2, 2), b"\2\1\2\1"), "bits"),
    "pruned stream padding": (row("w", "I8", 6, 3, (2, 2), b"\1\1\2\x45"), "padding"),
    "pruned entropy coder cut short": (row("w", "I8", 6, 3, (2, 2), b"\4\1\2\1"), "short"),
    "an index beyond the levels": (row("w", "I8", 3, 3, (1,), b"\2\0\0\1\0\2\0\3"), "index"),
    "codebook padding": (row("w", "I8", 3, 3, (1,), b"\1\0\0\1\0\x02"), "padding"),
}


@READERS
@pytest.mark.parametrize("case", ROWS)
def test_a_broken_row_or_stream_is_rejected(read, case):
    bad, message = ROWS[case]
    rows = [row("a", "U8", 0, 8, (1,), b"x"), bad]
    content = assemble(rows)
    tracemalloc.start()
    try:
        assert_rejected(
            read, content, f"(table, at byte 88|tensor 1 of the table, at byte 110|'w' at byte).*({message})"
        )
        assert tracemalloc.get_traced_memory()[1] < 4 * len(content) + (1 << 20)
    finally:
        tracemalloc.stop()


def rans_stream(lowest=-1, frequencies=(1024, 2048, 1024), lanes=0, states=(1 << 16,), words=b"", count=None):
    packed = brute_force_stream(frequencies, 12)
    head = struct.pack("<hHB", lowest, len(frequencies) if count is None else count, lanes) + packed
    return head + struct.pack(f"<{len(states)}I", *states) + words


RANS = {
    "no bytes": (b"", "short"),
    "one symbol": (rans_stream(frequencies=(4095,)), "symbols"),
    "513 symbols": (rans_stream(count=513), "symbols"),
    "values beyond the bits": (rans_stream(lowest=1), "fit"),
    "values below the bits": (rans_stream(lowest=-3), "fit"),
    "2^11 lanes": (rans_stream(lanes=11), "lanes"),
    "2^255 lanes": (rans_stream(lanes=255), "lanes"),
    "more lanes than the elements have": (rans_stream(lanes=1, states=(1 << 16,) * 2), "lanes"),
    "states cut short": (rans_stream()[:-2], "short"),
    "a sum below 2^12": (rans_stream(frequencies=(1024, 2047, 1024)), "sum"),
    "a sum above 2^12": (rans_stream(frequencies=(1024, 2049, 1024)), "sum"),
    "a zero first": (rans_stream(frequencies=(0, 3072, 1024)), "zero"),
    "a zero last": (rans_stream(frequencies=(3072, 1024, 0)), "zero"),
    "a state too small": (rans_stream(states=(65535,)), "state"),
    "half a word": (rans_stream(words=b"x"), "half a word"),
    "words missing": (rans_stream(), "too early"),
    "table padding": (rans_stream()[:9] + b"\xf0" + rans_stream()[10:], "padding"),
}


@READERS
@pytest.mark.parametrize("case", RANS)
def test_a_corrupted_entropy_coder_is_rejected(read, case):
    stored, message = RANS[case]
    assert_rejected(read, integers(2, 4, stored, 9), f"'w' at byte .*({message})")


@READERS
def test_an_entropy_coded_stream_with_words_left_or_a_wrong_end_is_rejected(read):
    q = np.array([-1, 0, 1, 1, 0, -2] * 50, np.int8)
    stored = rans_encode(q, fitted(-2, np.bincount(q + 2)))
    content = integers(2, 4, stored, q.size)
    assert (CsqFile(content, where="x").tensor("w") == q).all()
    for broken, count in (
        (stored + b"\0\0", q.size),
        (stored[:-2], q.size),
        (stored, q.size - 1),
        (stored, q.size + 1),
    ):
        assert_rejected(read, integers(2, 4, broken, count), "words")


def one_value(count, lanes=None):
    """Return a stream of `count` times −1, of as many lanes as the specification says or of others."""
    wanted = max(1, min(count // 1024, 32), min(count // 4096, 1024))
    lanes = 1 << (wanted.bit_length() - 1) if lanes is None else lanes
    states, words = [1 << 16] * lanes, []
    for i in reversed(range(count)):
        x = states[i % lanes]
        if x >= 4095 << 20:
            words.append((x & 0xFFFF).to_bytes(2, "little"))
            x >>= 16
        states[i % lanes] = (x // 4095 << 12) + x % 4095
    return rans_stream(-1, (4095, 1), lanes.bit_length() - 1, states, b"".join(reversed(words)))


@pytest.mark.parametrize("count", [1, 2047, 2048, 32_767, 32_768, 262_143, 262_144])
def test_the_number_of_lanes_follows_from_the_number_of_elements(count):
    right = one_value(count)
    assert rans_encode(np.full(count, -1, np.int8), fitted(-1, np.array([4095, 1]))) == right
    lanes = 1 << right[4]
    for read in (by_exporter, by_decoder):
        assert (read(integers(2, 4, right, count, more=True))["w"] == -1).all()
        for other in (lanes // 2, lanes * 2):
            if other:
                with pytest.raises(FormatError, match=r"'w' at byte .*lanes"):
                    read(integers(2, 4, one_value(count, other), count, more=True))


@READERS
def test_a_small_file_of_entropy_coded_tensors_does_not_keep_a_reader_busy(read):
    # One lane each: a million rounds of vectors of one element would take as long as a thousand million elements.
    stored = one_value(2047)
    rows = [row(f"{i:03}", "I8", 4, 2, (2047,), stored) for i in range(512)]
    begin = time.process_time()
    with contextlib.suppress(FormatError):  # it describes no model
        read(assemble(rows), where="x")
    assert time.process_time() - begin < 5


@READERS
def test_trailing_bytes_padding_and_holes_are_rejected(read):
    content = bytearray(assemble([row("w", "U8", 0, 8, (3,), b"abc")]))
    assert_rejected(read, content + b"\0", "trailing bytes")
    assert_rejected(read, content + bytes(8), "trailing bytes")
    assert_rejected(read, content[:-1], "truncated")
    content[-1] = 1
    assert_rejected(read, content, "padding")


@READERS
def test_a_small_file_that_claims_gigabytes_is_rejected_before_memory_is_taken(read):
    # One level and no index bits: three bytes for any number of elements.
    content = integers(1, 3, b"\0\0\0", 1 << 30)
    tracemalloc.start()
    try:
        assert_rejected(read, content, "64 times|bytes of tensors")
        assert tracemalloc.get_traced_memory()[1] < 4 * len(content) + (1 << 20)
    finally:
        tracemalloc.stop()


@contextlib.contextmanager
def memory_within_four_times(content):
    """Fail where more than four times the file and a fixed 1.5 MB are taken at any moment."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 4 * len(content) + 1_500_000
    finally:
        tracemalloc.stop()


@READERS
def test_a_table_of_tiny_tensors_takes_no_more_memory_than_the_file_justifies(read):
    content = assemble([row(f"{i:05x}", "I8", 3, 1, (1,), b"") for i in range(65_536)])
    with memory_within_four_times(content):
        assert_rejected(read, content, "65536 tensors")
    # As many as there may be: the smallest rows, and one that makes the file large enough.
    wide = row("zz", "U8", 0, 8, (1 << 20,), bytes(1 << 20))
    most = 3250
    content = assemble([*(row(f"{i:05x}", "U8", 0, 8, (1,), b"x") for i in range(most)), wide])
    with memory_within_four_times(content):
        assert_rejected(checked, content, "SHA-256|metadata")
    with memory_within_four_times(content):
        assert len(decode(content, where="x")[0]) == most + 1


def test_nothing_with_more_tensors_than_its_bytes_justify_is_written():
    many = {f"t{i}": np.zeros(1, np.uint8) for i in range(1500)}
    with pytest.raises(ExportError, match=r"1502 tensors, at most \d+ in a file of"):
        pack(one_layer(np.array([1, -1], np.int8), **many))


@pytest.mark.parametrize(("encoding", "shape"), [(3, (1 << 20,)), (4, (1 << 20,)), (6, (1 << 10, 1 << 10))])
def test_a_stream_that_turns_out_damaged_has_taken_no_memory_for_the_tensor(encoding, shape):
    count = 1 << 20
    stored = {  # an index beyond the levels, words left over, bytes too few
        3: b"\2" + struct.pack("<3h", -1, 0, 1) + bytes(count // 4 - 1) + b"\xc0",
        4: one_value(count) + b"\0\0",
        6: b"\1" + b"\xff" * 127 + b"\x7f" + b"\xff" * 128 + bytes(128),
    }[encoding]
    content = assemble([row("w", "I16", encoding, 2, shape, stored), row("z", "U8", 0, 8, (1 << 15,), bytes(1 << 15))])
    file = CsqFile(content, where="x")
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="'w' at byte"):
            file.tensor("w")
        assert tracemalloc.get_traced_memory()[1] < 1_900_000  # the tensor takes 2 MiB
    finally:
        tracemalloc.stop()


@READERS
def test_metadata_nested_a_million_deep_are_an_error(read):
    deep = b"[" * 1_000_000
    content = assemble([row("w", "U8", 0, 8, (1 << 18,), bytes(1 << 18))], deep)
    if read is checked:
        digest = bytes.fromhex(hashlib.sha256(b"".join(CsqFile(content, where="x").finalized())).hexdigest())
        content = assemble([row("w", "U8", 0, 8, (1 << 18,), bytes(1 << 18))], deep, digest)
        assert_rejected(read, content, "metadata")
    else:
        read(content, where="x")  # text to this reader; the caller compares it


@pytest.mark.parametrize(("old", "new", "message"), WRONG_METADATA, ids=range(len(WRONG_METADATA)))
def test_metadata_that_describe_no_such_model_are_rejected(old, new, message):
    rows, metadata, _ = disassemble(SMALL)
    changed = metadata.decode().replace(old, new, 1)
    assert changed != metadata.decode()
    assert_rejected(checked, sealed(rows, changed.encode()), rf"metadata at byte \d+: .*{message}")


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, 0.0, -0.0, -1.0])
@pytest.mark.parametrize("name", ["conv.weight_scale", "conv.input_scale"])
def test_a_scale_that_is_not_finite_and_above_zero_is_rejected(name, scale):
    assert_rejected(checked, resealed(name, np.float32(scale)), f"tensor '{name}' at byte .*scale")


def packed_by_hand(old, new):
    """Return the finalized file of the small model with other metadata, as another writer could make it."""
    tensors, metadata = to_tensors(small_model())
    assert old in metadata
    return serialize(tensors, metadata.replace(old, new, 1))


@pytest.mark.parametrize("verb", [("pack",), ("export", "--format", "csq"), ("export", "--format", "c")])
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"bits":4', '"bits":4.7', "bits is 4.7"),
        ('"bits":4', '"bits": 4', "not those that csqtool finalize writes"),
        ('"accuracy":0.875', '"accuracy":0.8750', "not those that csqtool finalize writes"),
    ],
)
def test_what_unpack_could_not_give_back_is_not_packed(tmp_path, verb, old, new, message):
    (tmp_path / "m.safetensors").write_bytes(packed_by_hand(old, new))
    done = invoke(verb[0], tmp_path / "m.safetensors", *verb[1:], "-o", tmp_path / "m.csq")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
    assert message in done.stderr
    assert [f.name for f in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_pipe_named_as_output_stays_a_pipe(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(to_bytes(small_model()))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        done = invoke("pack", tmp_path / "m.safetensors", "-o", tmp_path / name)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
        assert "is no regular file" in done.stderr
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()
    assert sorted(f.name for f in tmp_path.iterdir()) == ["link", "m.safetensors", "pipe"]


def resealed(name, value):
    """Return the small file with another value in it, every checksum and the SHA-256 right."""
    rows, metadata, _ = disassemble(SMALL)
    stored = np.asarray(value).tobytes()
    rows = [
        r | {"stored": stored, "length": len(stored), "encoding": 0, "bits": 32} if r["name"] == name.encode() else r
        for r in rows
    ]
    file = CsqFile(assemble(rows, metadata), where="x")
    return assemble(rows, metadata, hashlib.sha256(b"".join(file.finalized())).digest())


def test_a_changed_value_with_repaired_checksums_fails_the_hash():
    assert_rejected(checked, small_with("fc.bias", stored=bytes(6)), "SHA-256")


@pytest.mark.parametrize("kind", ["fifo", "folder", "unreadable", "missing", "empty"])
def test_what_is_no_readable_file_is_one_clear_line(tmp_path, kind):
    path = tmp_path / "m.csq"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "unreadable":
        path.symlink_to(path)  # a loop: root may read any file
    elif kind == "empty":
        path.touch()
    with pytest.raises(InputError, match=str(path)):
        open_csq(path).model()
    done = invoke("unpack", path, "-o", tmp_path / "out")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "out").exists()


# --- memory, mapping, writing ------------------------------------------------------------------------------


def test_opening_maps_the_file_and_takes_no_memory_for_its_tensors(tmp_path):
    q = np.random.default_rng(0).integers(-4, 4, 1 << 22).astype(np.int8)
    path = tmp_path / "m.csq"
    path.write_bytes(pack(one_layer(q, other=np.arange(1 << 18, dtype=np.float32) / 3), encoding="dense"))
    tracemalloc.start()
    try:
        file = open_csq(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 18
        view = file.tensor("other")
        assert not view.flags.owndata
        assert not view.flags.writeable
        assert tracemalloc.get_traced_memory()[1] < 1 << 18
        decoded = file.tensor("w")
        assert tracemalloc.get_traced_memory()[1] < q.nbytes + (4 << 20)
    finally:
        tracemalloc.stop()
    assert (decoded == q).all()


def test_nothing_that_does_not_fit_is_written():
    for name in ("a/b", "x" * 256, "\0", ".."):
        with pytest.raises(ExportError, match="cannot be called"):
            pack(one_layer(np.array([1], np.int8), **{name: np.zeros(1, np.float32)}))
    with pytest.raises(ExportError, match="dimension"):
        pack(one_layer(np.array([1], np.int8), empty=np.zeros((3, 0), np.float32)))
    with pytest.raises(ExportError, match="unknown encoding"):
        pack(small_model(), encoding="zip")


def test_a_full_disk_leaves_the_old_file(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(to_bytes(golden_models()["v2-rans"][0]))
    (tmp_path / "m.csq").write_bytes(SMALL)
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from csqtool.cli import main; sys.argv = ['csqtool', 'pack', 'm.safetensors', '-o', 'm.csq']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "cannot write m.csq: File too large" in done.stderr
    assert {f.name for f in tmp_path.iterdir()} == {"m.safetensors", "m.csq"}
    assert (tmp_path / "m.csq").read_bytes() == SMALL


def test_a_kill_at_any_moment_leaves_the_old_file_or_the_new_one(tmp_path):
    code = (
        "import sys; from pathlib import Path; from csqtool.files import write_bytes\n"
        "print('ready', flush=True)\n"
        "i = 0\n"
        "while True: i += 1; write_bytes(Path('m.csq'), bytes([i % 256]) * 2_000_000)"
    )
    for delay in (0.0, 0.01, 0.03, 0.07, 0.11):
        writer = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE)
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        if (tmp_path / "m.csq").exists():
            content = (tmp_path / "m.csq").read_bytes()
            assert content == content[:1] * 2_000_000


# --- graph and float16 -------------------------------------------------------------------------------------


def by_verifier(content):
    """Rebuild a package's ONNX file with the verifier's own reader of the graph."""
    recipe, start = graph_part(content, where="x")
    try:
        return rebuild(recipe, list(by_decoder(content).values()), 64 * len(content))
    except FormatError as error:
        raise FormatError(f"x: graph at byte {start}: {error}") from error


REBUILDERS = pytest.mark.parametrize(
    "rebuilt", [lambda content: graph.rebuild(CsqFile(content, where="x")), by_verifier], ids=["exporter", "verifier"]
)


@REBUILDERS
def test_the_golden_graph_is_rebuilt_bit_for_bit(rebuilt):
    file = CsqFile((GOLDEN / "v2-graph.csq").read_bytes(), where="x")
    assert rebuilt((GOLDEN / "v2-graph.csq").read_bytes()) == golden_onnx()
    assert len(file.graph) < 44 + 3 * 8 + len(golden_onnx()) - 7 + 1  # the weights are not in it


@REBUILDERS
def test_a_changed_recipe_is_rejected_or_gives_the_right_file(rebuilt):
    content = (GOLDEN / "v2-graph.csq").read_bytes()
    recipe = bytearray(CsqFile(content, where="x").graph)
    unnoticed, places = [], []
    for bit in range(len(recipe) * 8):
        changed = bytearray(recipe)
        changed[bit // 8] ^= 1 << bit % 8
        rows, metadata, digest = disassemble(content)
        whole = assemble(rows, metadata, digest, graph_part=zlib.compress(bytes(changed)), graph_size=len(changed))
        try:
            assert rebuilt(whole) == golden_onnx()
            unnoticed.append(bit // 8)
        except FormatError as error:
            places.append(str(error)[:8])
    assert set(places) == {"x: graph"}
    assert len(unnoticed) <= 1  # transposing (7, 1, 1) changes nothing


def sealed(rows, metadata, **graph):
    """Return a file that is right down to its SHA-256, with a recipe beside it."""
    digest = hashlib.sha256(b"".join(CsqFile(assemble(rows, metadata), where="x").finalized())).digest()
    return assemble(rows, metadata, digest, **graph)


def with_recipe(recipe, *more):
    """Return the small model's file with a recipe; tensor 1 is `conv.input_scale`, four bytes."""
    rows, metadata, _ = disassemble(SMALL)
    return sealed([*rows, *more], metadata, graph_part=zlib.compress(recipe, 9), graph_size=len(recipe))


@pytest.mark.parametrize("shape", [(11,), (16,), (5, 7), (3, 4, 5), (1,)])
def test_both_readers_of_the_graph_give_the_same_bytes_in_every_form(shape):
    q = spread(math.prod(shape), -100, 100).astype(np.int8).reshape(shape)
    rows, metadata, digest = disassemble(pack(one_layer(q), encoding="dense"))
    signs = bytes([255, 0, 1, 1, 255] * 4)[: shape[0]]
    for form, bits, flags in [(1, 0, f) for f in range(4)] + [(f, b, g) for f in (2, 3, 4) for b in (1, 5, 8, 9)
                                                              for g in range(4)]:  # fmt: skip
        size = q.nbytes if form == 1 else -(-q.size // 8) * bits if form == 4 else -(-q.size * bits // 8)
        piece = struct.pack("<BBBBI", form, bits, flags, 0, 0) + (signs if flags & 1 else b"")
        made = []
        for digest_of in (bytes(32), None):
            right = digest_of or hashlib.sha256(made[0]).digest()
            recipe = struct.pack("<32sQI", right, size + 3, 2) + piece + struct.pack("<BBBBI", 0, 0, 0, 0, 3) + b"end"
            content = assemble(rows, metadata, digest, graph_part=zlib.compress(recipe), graph_size=len(recipe))
            if digest_of:  # what the exporter's own form gives, without its SHA-256
                kept = np.frombuffer(signs, np.int8) if flags & 1 else None
                made.append(graph._Reference("w", form, bits, kept, flags > 1).bytes(q) + b"end")
            else:
                assert by_verifier(content) == graph.rebuild(CsqFile(content, where="x")) == made[0]


@pytest.mark.parametrize("count", [130_000, 500_000])
def test_a_recipe_of_many_pieces_takes_no_more_memory_than_the_file_justifies(count):
    piece = struct.pack("<BBBBI", 1, 0, 0, 0, 1)
    many = struct.pack("<32sQI", bytes(32), 4 * count, count) + piece * count
    content = with_recipe(many, row("zz", "U8", 0, 8, (800_000,), bytes(800_000)))
    file = CsqFile(content, where="x")
    with memory_within_four_times(content), pytest.raises(FormatError, match=r"^x: graph at byte \d+.* pieces"):
        graph.rebuild(file)
    with pytest.raises(FormatError, match=r"^x: graph at byte \d+.* pieces"):
        by_verifier(content)


def test_a_recipe_that_makes_another_file_is_noticed_before_it_is_made():
    # Sixty times a tensor of 64,000 bytes, which is almost all of the file; each piece is right.
    piece = struct.pack("<BBBBI", 1, 0, 0, 0, 9)
    wide = row("zz", "U8", 0, 8, (64_000,), bytes(64_000))
    for total, message in ((64_000 * 60, "SHA-256"), (64_000 * 60 - 1, "pieces have 3840000 bytes")):
        content = with_recipe(struct.pack("<32sQI", bytes(32), total, 60) + piece * 60, wide)
        file = CsqFile(content, where="x")
        with memory_within_four_times(content), pytest.raises(FormatError, match=rf"^x: graph at byte \d+.*{message}"):
            graph.rebuild(file)


@pytest.mark.parametrize("name", [p.stem for p in sorted(GOLDEN.glob("*.csq"))])
def test_mutated_files_are_read_or_refused_by_both_python_readers_alike(name):
    # Wherever both accept, they give the same tensors; nothing but FormatError ever comes out of either.
    content = (GOLDEN / f"{name}.csq").read_bytes()
    rng = np.random.default_rng(len(content))
    for _ in range(40):
        changed = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            changed[int(rng.integers(0, len(changed)))] ^= 1 << int(rng.integers(0, 8))
        changed = with_right_checksums(changed)
        found = []
        for read in (by_exporter, by_decoder):
            try:
                found.append({k: (v.dtype, v.shape, v.tobytes()) for k, v in read(changed).items()})
            except FormatError:
                found.append(None)
        assert found[0] == found[1]


def by_exporter(content):
    file = CsqFile(content, where="x")
    return {name: file.tensor(name) for name in file.entries}


def by_decoder(content):
    return decode(content, where="x")[0]


def test_a_coverage_guided_fuzzer_finds_nothing_in_the_python_readers_in_a_short_run(tmp_path):
    pytest.importorskip("atheris", reason="atheris is not installed")
    harness = Path(__file__).parent / "fuzz" / "csq_readers.py"
    corpus = tmp_path / "corpus"  # the first folder is where new inputs go
    corpus.mkdir()
    command = [sys.executable, str(harness), "-atheris_runs=1500", "-max_len=4096", "-seed=1", str(corpus), str(GOLDEN)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
