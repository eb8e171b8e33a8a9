"""What only a reader that rebuilds the finalized model can reject: its metadata, scales and SHA-256."""

import hashlib

import numpy as np
import pytest

from csqtool.csq import CsqFile, pack
from tests.support.csq_files import WRONG_METADATA, brute_force_stream, one_layer
from tests.support.csq_handmade import (
    READERS,
    SMALL,
    assemble,
    assert_rejected,
    checked,
    disassemble,
    row,
    sealed,
    small_with,
)


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


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, 0.0, -0.0, -1.0])
@pytest.mark.parametrize("name", ["conv.weight_scale", "conv.input_scale"])
def test_a_scale_that_is_not_finite_and_above_zero_is_rejected(name, scale):
    assert_rejected(checked, resealed(name, np.float32(scale)), f"tensor '{name}' at byte .*scale")


def test_a_changed_value_with_repaired_checksums_fails_the_hash():
    assert_rejected(checked, small_with("fc.bias", stored=bytes(6)), "SHA-256")


def stored_otherwise(model, name, **fields):
    """Return the file of `model` with a tensor stored in another way, right down to the SHA-256."""
    rows, metadata, digest = disassemble(pack(model))
    rows = [r | fields if r["name"] == name.encode() else r for r in rows]
    return assemble([r | {"length": len(r["stored"])} for r in rows], metadata, digest)


def test_a_layer_stored_wider_than_its_integers_need_is_rejected():
    content = stored_otherwise(
        one_layer(np.array([-4, 3, 1], np.int8)), "w", encoding=1, bits=4, stored=brute_force_stream([-4, 3, 1], 4)
    )
    assert_rejected(checked, content, "'w' at byte .*: stored at 4 bits, the metadata say 3 bits")


def test_a_layer_stored_raw_is_rejected():
    content = stored_otherwise(
        one_layer(np.array([-4, 3, 1], np.int8)), "w", encoding=0, bits=8, stored=bytes([0xFC, 3, 1])
    )
    assert_rejected(checked, content, "'w' at byte .*: stored at no bits")


def test_integers_of_a_tensor_that_is_no_layer_are_rejected():
    content = stored_otherwise(one_layer(np.array([1], np.int8), other=np.array([5], np.int8)), "other", encoding=1)
    assert_rejected(checked, content, "'other' at byte .*: stored at 8 bits, the metadata say no bits")
