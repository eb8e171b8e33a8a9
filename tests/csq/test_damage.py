"""Damaged and dishonest `.csq` files: two readers, written apart, against the rules of the specification."""

import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csqtool.csq import CsqFile
from csqtool.csq.rans import encode as rans_encode
from csqtool.csq.rans import fitted
from csqtool.errors import FormatError
from tests.support.csq_bad_streams import RANS, ROWS, one_value
from tests.support.csq_files import GOLDEN, MAGIC, with_right_checksums
from tests.support.csq_handmade import (
    READERS,
    SMALL,
    assemble,
    assert_rejected,
    by_codec,
    by_decoder,
    checked,
    integers,
    row,
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


def test_a_file_of_an_unknown_version_is_refused_and_the_message_names_the_known_one():
    # Version 1 was never released.
    for version, more in ((1, "reads 2 and 3$"), (4, "reads 2 and 3; a newer csqtool may know it$")):
        content = assemble([row("w", "I8", 1, 3, (2,), b"\x05")], version=version)
        assert_rejected(checked, content, f"csq version {version} at byte 8, this csqtool {more}")


@READERS
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"magic": b"\x93NUMPY\x01\x00"}, "not a csq file"),
        ({"magic": b"\x89CSQ\n\x1a\n\x01"}, "not a csq file"),
        ({"version": 0}, "csq version 0"),
        ({"version": 4}, "csq version 4"),
        ({"version": 3}, "0 context-coded elements in a file of version 3"),
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
@given(content=st.binary(max_size=64))
def test_random_bytes_after_magic_and_version_are_rejected(read, content):
    assert_rejected(read, MAGIC + content, "")
    assert_rejected(read, MAGIC + (2).to_bytes(4, "little") + content, "")


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
def test_a_name_that_occurs_twice_or_out_of_order_is_rejected(read):
    for names in ("aa", "ba", ("é", "z")):
        rows = [row(name, "U8", 0, 8, (1,), b"x") for name in names]
        assert_rejected(read, assemble(rows), "twice")


@READERS
@pytest.mark.parametrize("case", ROWS)
def test_a_wrong_row_or_stream_is_rejected(read, case):
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
    for wrong, count in (
        (stored + b"\0\0", q.size),
        (stored[:-2], q.size),
        (stored, q.size - 1),
        (stored, q.size + 1),
    ):
        assert_rejected(read, integers(2, 4, wrong, count), "words")


@pytest.mark.parametrize("count", [1, 2047, 2048, 32_767, 32_768, 262_143, 262_144])
def test_the_number_of_lanes_follows_from_the_number_of_elements(count):
    right = one_value(count)
    assert rans_encode(np.full(count, -1, np.int8), fitted(-1, np.array([4095, 1]))) == right
    lanes = 1 << right[4]
    for read in (by_codec, by_decoder):
        assert (read(integers(2, 4, right, count, more=True))["w"] == -1).all()
        for other in (lanes // 2, lanes * 2):
            if other:
                with pytest.raises(FormatError, match=r"'w' at byte .*lanes"):
                    read(integers(2, 4, one_value(count, other), count, more=True))


@READERS
def test_trailing_bytes_padding_and_holes_are_rejected(read):
    content = bytearray(assemble([row("w", "U8", 0, 8, (3,), b"abc")]))
    assert_rejected(read, content + b"\0", "trailing bytes")
    assert_rejected(read, content + bytes(8), "trailing bytes")
    assert_rejected(read, content[:-1], "truncated")
    content[-1] = 1
    assert_rejected(read, content, "padding")


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
        for read in (by_codec, by_decoder):
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
