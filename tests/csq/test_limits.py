"""What a small `.csq` file can cost a reader: memory and time stay in proportion to the file."""

import struct
import tracemalloc

import numpy as np
import pytest

from csqtool.csq import CsqFile, pack, rans
from csqtool.errors import ExportError, FormatError
from csqtool.verifying.csq_decoder import decode
from tests.support.csq_bad_streams import one_value
from tests.support.csq_files import one_layer
from tests.support.csq_handmade import (
    READERS,
    assemble,
    assert_rejected,
    by_codec,
    by_decoder,
    checked,
    integers,
    memory_within_four_times,
    row,
)


@pytest.mark.parametrize(
    ("read", "module", "name"),
    [(by_codec, rans, "_in_rounds"), (by_decoder, np, "searchsorted")],
    ids=["codec", "verifier"],
)
def test_few_lanes_are_decoded_element_by_element_not_in_vectors_of_one(read, module, name, monkeypatch):
    # A million rounds of vectors of one element would keep a reader busy as long as a thousand million elements.
    def rounds(*arguments, **options):
        raise AssertionError("decoded in rounds")

    monkeypatch.setattr(module, name, rounds)
    assert (read(integers(2, 4, one_value(2047), 2047))["w"] == -1).all()
    with pytest.raises(AssertionError, match="in rounds"):
        read(integers(2, 4, one_value(16_384), 16_384, more=True))


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
