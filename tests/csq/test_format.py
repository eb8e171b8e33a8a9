"""The `.csq` format: what is written comes back, from two readers written apart."""

import hashlib
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csqtool.csq import CsqFile, float32_size, integer_bytes, pack, tensor_bytes, unpack
from csqtool.csq.entry import Encoding
from csqtool.csq.rans import encode as rans_encode
from csqtool.csq.rans import fitted
from csqtool.errors import ExportError
from csqtool.finalized_file import serialize, to_bytes, to_tensors
from csqtool.verifying.csq_decoder import decode
from tests.support.csq_files import (
    GOLDEN,
    brute_force_stream,
    golden_models,
    layers_of,
    one_layer,
    pruned,
    small_model,
)
from tests.support.csq_handmade import DTYPES, READERS, SMALL, assemble, checked, disassemble, integers, row


@pytest.mark.parametrize("name", golden_models())
def test_a_golden_file_is_read(name):
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
    found = [e for path in GOLDEN.glob("*.csq") for e in CsqFile(path.read_bytes(), where="x").entries.values()]
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
    if bits > 1:
        assert len(content) < len(done.stdout)


def test_nothing_that_does_not_fit_is_written():
    for name in ("a/b", "x" * 256, "\0", ".."):
        with pytest.raises(ExportError, match="cannot be called"):
            pack(one_layer(np.array([1], np.int8), **{name: np.zeros(1, np.float32)}))
    with pytest.raises(ExportError, match="dimension"):
        pack(one_layer(np.array([1], np.int8), empty=np.zeros((3, 0), np.float32)))
    with pytest.raises(ExportError, match="unknown encoding"):
        pack(small_model(), encoding="zip")


@pytest.mark.parametrize("name", golden_models())
def test_sizes_are_those_of_the_files_that_would_be_written(name):
    model, _ = golden_models()[name]
    weights = {layer.name: layer.dequantized() for layer in model.layers}
    assert float32_size(model) == len(serialize({**model.tensors, **weights}, "{}"))
    content = pack(model)
    stored = tensor_bytes(content, where="x")
    for layer in model.layers:
        assert integer_bytes(layer.q) == -(-stored[layer.name] // 8) * 8
