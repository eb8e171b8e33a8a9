"""Damaged and dishonest `.csq` files, version 2: two readers, written apart, against the rules of the specification."""

import contextlib
import hashlib
import os
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from csqtool.csq import CsqFile, open_csq, pack
from csqtool.csq.rans import encode as rans_encode
from csqtool.csq.rans import fitted
from csqtool.errors import ExportError, FormatError, InputError
from csqtool.finalized_file import serialize, to_bytes, to_tensors
from csqtool.verifying.csq_decoder import decode
from tests.support.commands import invoke
from tests.support.csq_files import (
    GOLDEN,
    WRONG_METADATA,
    brute_force_stream,
    one_layer,
    small_model,
    with_right_checksums,
)
from tests.support.csq_handmade import (
    READERS,
    SMALL,
    assemble,
    assert_rejected,
    by_decoder,
    by_exporter,
    checked,
    disassemble,
    integers,
    memory_within_four_times,
    row,
    sealed,
    small_with,
)


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


def test_a_coverage_guided_fuzzer_finds_nothing_in_the_python_readers_in_a_short_run(tmp_path):
    pytest.importorskip("atheris", reason="atheris is not installed")
    harness = Path(__file__).parents[1] / "fuzz" / "csq_readers.py"
    corpus = tmp_path / "corpus"  # the first folder is where new inputs go
    corpus.mkdir()
    command = [sys.executable, str(harness), "-atheris_runs=1500", "-max_len=4096", "-seed=1", str(corpus), str(GOLDEN)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
