"""Streams of k-bit fields against long integers, which know nothing of bytes and words."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csqtool.csq.bit_fields import pack_fields, pack_integers, unpack_integers, unpacked_blocks
from csqtool.errors import ExportError
from tests.support.csq_files import brute_force_stream


@given(st.integers(1, 9), st.integers(0, 50), st.integers(0, 2**32 - 1))
def test_integers_of_any_width_are_packed_as_one_long_integer_and_come_back(bits, count, seed):
    q = np.random.default_rng(seed).integers(-(1 << (bits - 1)), 1 << (bits - 1), count).astype(np.int16)
    stream = pack_integers(q, bits)
    assert stream == brute_force_stream(q, bits)
    assert unpack_integers(stream, count, bits, np.dtype(np.int16)).tolist() == q.tolist()


@given(st.integers(1, 12), st.lists(st.integers(0, 2**12 - 1), max_size=40))
def test_fields_without_a_sign_come_back_as_they_are(bits, values):
    fields = np.array(values, np.int16) & ((1 << bits) - 1)
    blocks = [
        block.tolist() for block, _ in unpacked_blocks(pack_fields(fields, bits), len(values), bits, signed=False)
    ]
    found = [value % 2**bits for block in blocks for value in block]  # a block of eight bits is int8
    assert found == fields.tolist()


@pytest.mark.parametrize("bits", range(1, 10))
def test_a_value_that_does_not_fit_is_refused_never_masked(bits):
    for value in (-(1 << (bits - 1)) - 1, 1 << (bits - 1)):
        with pytest.raises(ExportError, match=f"do not fit {bits} bits"):
            pack_integers(np.array([0, value], np.int16), bits)


@pytest.mark.parametrize("bits", [0, 10])
def test_a_width_that_the_format_does_not_have_is_refused(bits):
    with pytest.raises(ExportError, match=f"1 to 9 bits a value, got {bits}"):
        pack_integers(np.array([0], np.int16), bits)


def test_floats_are_refused():
    with pytest.raises(ExportError, match="packs integers, got float32"):
        pack_integers(np.zeros(3, np.float32), 3)
