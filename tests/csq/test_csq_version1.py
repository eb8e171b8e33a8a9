"""Version 1 of the `.csq` format, which is only read: everything a reader must go on accepting and rejecting.

Two readers stand against each other: the exporter's, and the verifier's, which shares no code with it.
`golden/v1.csq` was written when version 1 was fixed and is kept for ever.
"""

import copy
import hashlib
import itertools
import json
import math
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csqtool.csq import CsqFile, pack, read_csq, unpack
from csqtool.errors import FormatError
from csqtool.finalized_file import to_bytes, to_tensors
from csqtool.verifying.csq_decoder import decode
from tests.support.csq_files import GOLDEN as GOLDEN_FOLDER
from tests.support.csq_files import MAGIC, WRONG_METADATA, brute_force_stream, one_layer, small_model

GOLDEN = GOLDEN_FOLDER / "v1.csq"


def checked(content, *, where):
    return CsqFile(content, where=where).model()


READERS = pytest.mark.parametrize("read", [checked, decode], ids=["exporter", "decoder"])


def version_1(model):
    """Return the file of `model`, written as version 1 was: integers packed, the rest raw, sorted by name."""
    tensors, metadata = to_tensors(model)
    widths = {layer.name: layer.bit_width for layer in model.layers}
    entries, data = [], bytearray()
    names = {np.dtype(np.int8): "I8", np.dtype(np.float32): "F32"}
    for name, array in sorted(tensors.items()):
        bits = widths.get(name, array.itemsize * 8)
        stored = brute_force_stream(array.ravel(), bits) if name in widths else array.tobytes()
        entry = {"name": name, "dtype": names[array.dtype], "shape": list(array.shape)}
        entry |= {"encoding": "packed" if name in widths else "raw", "bits": bits, "offset": len(data)}
        entries.append(entry | {"length": len(stored), "crc32": zlib.crc32(stored)})
        data += stored + bytes(-len(stored) % 8)
    digest = hashlib.sha256(to_bytes(model)).hexdigest()
    return assemble({"finalized_sha256": digest, "metadata": metadata, "tensors": entries}, data)


def assemble(document, data, **fields):
    """Return a file with the checksums that its header needs: only what a test breaks is broken."""
    header = document
    if not isinstance(header, bytes):
        header = json.dumps(document).encode()
    header += b" " * (-len(header) % 8)
    preamble = {"magic": MAGIC, "version": 1, "length": len(header), "crc": zlib.crc32(header), "reserved": 0}
    return struct.pack("<8sIIII", *(preamble | fields).values()) + header + bytes(data)


def disassemble(content):
    end = 24 + int.from_bytes(content[12:16], "little")
    return json.loads(content[24:end]), bytearray(content[end:])


def stream_file(stream, count, bits, dtype):
    """Return a file with one packed tensor of this stream."""
    entry = {"name": "w", "dtype": dtype, "shape": [count], "encoding": "packed", "bits": bits}
    entry |= {"offset": 0, "length": len(stream), "crc32": zlib.crc32(stream)}
    document = {"finalized_sha256": "0" * 64, "metadata": "{}", "tensors": [entry]}
    return assemble(document, stream + bytes(-len(stream) % 8))


def tensor(document, name):
    return next(entry for entry in document["tensors"] if entry["name"] == name)


def stamp(document, data):
    """Recompute every tensor's checksum after the data were changed."""
    for entry in document["tensors"]:
        entry["crc32"] = zlib.crc32(data[entry["offset"] : entry["offset"] + entry["length"]])


# --- reading ---------------------------------------------------------------------------------------------


def test_the_golden_file_of_version_1_is_read():
    golden = GOLDEN.read_bytes()
    assert unpack(golden, where="v1.csq") == to_bytes(small_model())
    tensors, _, digest = decode(golden, where="v1.csq")
    assert digest == hashlib.sha256(to_bytes(small_model())).hexdigest()
    assert tensors["conv.weight"].ravel().tolist() == [-4, 3, 0, -1, 2, 1, -3]
    assert tensors["fc.weight"].tolist() == [[-255, 255, 17]]
    assert tensors["fc.bias"].tolist() == [1.5, -0.25, 3.0]
    assert tensors["bn.num_batches_tracked"] == 42


def test_a_model_of_version_1_is_packed_anew_in_the_current_version_and_stays_the_same():
    model = read_csq(GOLDEN.read_bytes(), where="v1.csq")
    assert unpack(pack(model), where="x") == to_bytes(small_model())


def test_a_tensor_without_elements_is_read():
    for read in (lambda content: CsqFile(content, where="x").tensor("w"), lambda c: decode(c, where="x")[0]["w"]):
        assert read(stream_file(b"", 0, 3, "I8")).shape == (0,)


# --- what both readers reject ----------------------------------------------------------------------------


def assert_rejected(read, content, message="."):
    with pytest.raises(FormatError, match=message) as caught:
        read(bytes(content), where="dir/some.csq")
    assert str(caught.value).startswith("dir/some.csq")


@READERS
def test_every_flipped_bit_is_noticed(read):
    content = bytearray(GOLDEN.read_bytes())
    for i, bit in itertools.product(range(len(content)), range(8)):
        content[i] ^= 1 << bit
        with pytest.raises(FormatError, match=r"^x"):
            read(bytes(content), where="x")
        content[i] ^= 1 << bit
    read(bytes(content), where="x")


@READERS
def test_every_truncation_is_noticed(read):
    content = GOLDEN.read_bytes()
    for length in range(len(content)):
        with pytest.raises(FormatError, match=r"^x"):
            read(content[:length], where="x")


@READERS
@given(content=st.binary(max_size=64))
def test_random_bytes_behind_the_magic_are_a_format_error(read, content):
    assert_rejected(read, MAGIC + content)


@READERS
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"magic": b"\x93NUMPY\x01\x00"}, "not a csq file"),
        ({"magic": b"\x89CSQ\n\x1a\n\x01"}, "not a csq file"),
        ({"version": 0}, "csq version 0"),
        ({"version": 3}, "csq version 3"),
        ({"length": 2**32 - 1}, "header (length|of) 4294967295"),
        ({"length": 64 * 2**20 + 8}, "67108872"),
        ({"length": 64 * 2**20}, "truncated"),
        ({"length": 9}, "multiple of 8"),
        ({"crc": 1}, "damaged header"),
        ({"reserved": 1}, "reserved field"),
    ],
)
def test_a_wrong_preamble_is_rejected(read, fields, message):
    assert_rejected(read, assemble(*disassemble(GOLDEN.read_bytes()), **fields), message)


@READERS
@pytest.mark.parametrize(
    "header",
    [b"", b"{", b"\xff\xfe{}", b"[" * 10_000, b"1" * 10_000, b"{}{}", b"\xef\xbb\xbf{}", b"\xed\xa0\x80"],
    ids=["empty", "cut", "not UTF-8", "deeply nested", "endless number", "two documents", "BOM", "surrogate"],
)
def test_a_header_that_is_no_json_is_rejected(read, header):
    assert_rejected(read, assemble(header, b""), "not JSON in UTF-8")


@READERS
@pytest.mark.parametrize("item", [b"[],", b"{},", b'{"":0},', b'"a":1,', b"1.5,"])
def test_a_header_takes_no_more_memory_than_the_file_justifies(read, item):
    for count in (2_000_000 // len(item), 20_000):
        items = item * count
        header = b"{" + items + b'"":0}' if item.startswith(b'"') else b"[" + items + b"0]"
        content = assemble(header, b"")
        tracemalloc.start()
        try:
            assert_rejected(read, content, "header")
            assert tracemalloc.get_traced_memory()[1] < 4 * len(content) + 1_500_000
        finally:
            tracemalloc.stop()


@READERS
@pytest.mark.parametrize("header", [b"[]", b"null", b"1", b'"tensors"', b"{}"])
def test_a_header_that_is_no_complete_object_is_rejected(read, header):
    assert_rejected(read, assemble(header, b""), "header (keys|is not|lacks)")


@READERS
@pytest.mark.parametrize("key", ["metadata", "tensors", "finalized_sha256", "name", "crc32", "shape"])
def test_a_key_that_stands_twice_is_rejected(read, key):
    document, data = disassemble(GOLDEN.read_bytes())
    text = json.dumps(document).replace(f'"{key}":', f'"{key}": 1, "{key}":', 1)
    assert_rejected(read, assemble(text.encode(), data), f"key '{key}'.*twice")


@READERS
def test_unknown_and_missing_keys_are_rejected(read):
    document, data = disassemble(GOLDEN.read_bytes())
    for holder in (lambda d: d, lambda d: d["tensors"][0], lambda d: d["tensors"][-1]):
        changed = copy.deepcopy(document)
        holder(changed)["comment"] = ""
        assert_rejected(read, assemble(changed, data), "key")
        for key in list(holder(document)):
            changed = copy.deepcopy(document)
            del holder(changed)[key]
            assert_rejected(read, assemble(changed, data), f"{key}")


WRONG_VALUES = {
    "finalized_sha256": [None, 1, "", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 63 + "\n", ["0"] * 64],
    "metadata": [None, {}, 1, "\ud800", "x\udc80"],
    "tensors": [None, {}, "", [None], [[]], [1], ["name"]],
    "name": [
        None, 1, True, [], "__metadata__", "\ud800", "", ".", "..", "a/b", "../a", "a\\b", "\0", "a\n", "\x7f",
        "x" * 256, "é" * 128,
    ],
    "dtype": [None, 1, [], {}, "", "i8", "BF16", "F8_E4M3", "float32", "I128"],
    "encoding": [None, 1, [], {}, "", "Raw", "zstd"],
    "shape": [None, 7, "7", {}, [True], [7.0], ["7"], [None], [[7]], [-7, -1], [-1], [7] + [1] * 32],
    "bits": [None, True, "3", 3.0, -3, 0, 10, 2**63, 10**4000, math.nan, math.inf, [3]],
    "offset": [None, True, "0", 0.0, -8, 2**63, 10**4000, math.nan],
    "length": [None, True, "3", 3.0, -3, 0, 2, 4, 2**63, 10**4000],
    "crc32": [None, True, "0", 0.5, -1, 2**32, 2**63],
}  # fmt: skip


@READERS
@pytest.mark.parametrize(
    ("key", "value"),
    [(k, v) for k, values in WRONG_VALUES.items() for v in values],
    ids=lambda x: f"{x!r:.20}",
)
def test_wrong_types_and_values_are_rejected(read, key, value):
    document, data = disassemble(GOLDEN.read_bytes())
    holders = [document] if key in document else [tensor(document, "conv.weight"), tensor(document, "fc.bias")]
    for holder in holders:
        original, holder[key] = holder[key], value
        words = {"crc32": "crc32|CRC-32", "shape": "shape|axes", "tensors": "tensor"}.get(key, key)
        assert_rejected(read, assemble(document, data), words)
        holder[key] = original


@READERS
@pytest.mark.parametrize(
    ("key", "value"), [("bits", True), ("offset", False), ("shape", [True]), ("length", True), ("bits", 1.0)]
)
def test_a_boolean_or_a_float_is_no_integer_even_where_it_would_fit(read, key, value):
    document, data = disassemble(version_1(one_layer(np.array([-1], np.int8))))  # one value of one bit in one byte
    assert tensor(document, "w")[key] == value
    tensor(document, "w")[key] = value
    assert_rejected(read, assemble(document, data), key)


@READERS
@pytest.mark.parametrize(
    "shape", [[2**49], [2**40, 2**40], [2**32, 2**32], [0, 2**62, 4], [2**63 - 1] * 32, [0, 2**49]]
)
def test_a_product_of_dimensions_that_overflows_is_rejected(read, shape):
    document, data = disassemble(GOLDEN.read_bytes())
    for length in (0, 3, (math.prod(shape) * 3 + 7) // 8 % 2**62, 2**62):
        tensor(document, "conv.weight").update(shape=shape, length=length)
        assert_rejected(read, assemble(document, data), "elements")


@READERS
@pytest.mark.parametrize(("name", "shape"), [("conv.weight", [2**40]), ("fc.bias", [2**40]), ("keep", [2**20, 2**20])])
def test_a_huge_tensor_in_a_small_file_is_rejected_before_memory_is_taken(read, name, shape):
    document, data = disassemble(GOLDEN.read_bytes())
    entry = tensor(document, name)
    entry.update(shape=shape, length=math.prod(shape) * entry["bits"] // 8)
    content = assemble(document, data)
    tracemalloc.start()
    try:
        assert_rejected(read, content, "truncated")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def _names_twice(document, data):
    document["tensors"][1]["name"] = document["tensors"][0]["name"]


def _unaligned(document, data):
    tensor(document, "conv.weight")["offset"] += 1


def _overlap(document, data):
    tensor(document, "conv.weight")["offset"] -= 8


def _gap(document, data):
    data[:0] = bytes(8)
    for entry in document["tensors"]:
        entry["offset"] += 8


def _out_of_order(document, data):
    document["tensors"].reverse()


def _trailing_byte(document, data):
    data.append(0)


def _trailing_block(document, data):
    data.extend(bytes(8))


def _missing_padding(document, data):
    del data[-1]


def _padding_byte(document, data):
    entry = tensor(document, "conv.weight")
    data[entry["offset"] + entry["length"]] = 1


def _last_padding_byte(document, data):
    data[-1] = 1


def _padding_bit(document, data):
    entry = tensor(document, "conv.weight")  # 7 values of 3 bits: 21 bits, 3 bits of padding
    data[entry["offset"] + 2] |= 0x20
    stamp(document, data)


def _nine_bit_padding_bit(document, data):
    data[tensor(document, "fc.weight")["offset"] + 3] |= 0x80
    stamp(document, data)


def _boolean(document, data):
    data[tensor(document, "keep")["offset"] + 1] = 2
    stamp(document, data)


def _checksum(document, data):
    tensor(document, "fc.bias")["crc32"] ^= 1


def _damage(document, data):
    data[tensor(document, "fc.bias")["offset"]] ^= 1


def _raw_width(document, data):
    tensor(document, "fc.bias").update(bits=16, shape=[6])


def _packed_float(document, data):
    tensor(document, "fc.bias").update(encoding="packed", bits=8, shape=[12])


def _nine_bits_in_int8(document, data):
    tensor(document, "fc.weight").update(dtype="I8")


STRUCTURE = {
    _names_twice: "twice",
    _unaligned: "offset",
    _overlap: "offset",
    _gap: "offset",
    _out_of_order: "offset",
    _trailing_byte: "trailing bytes",
    _trailing_block: "trailing bytes",
    _missing_padding: "truncated",
    _padding_byte: "padding",
    _last_padding_byte: "padding",
    _padding_bit: "padding bits",
    _nine_bit_padding_bit: "padding bits",
    _boolean: "neither 0 nor 1",
    _checksum: "'fc.bias' at byte [0-9]+: damaged",
    _damage: "'fc.bias' at byte [0-9]+: damaged",
    _raw_width: "bits is 16",
    _packed_float: "I8 or I16",
    _nine_bits_in_int8: "packed I8",
}


@READERS
@pytest.mark.parametrize(("corrupt", "message"), STRUCTURE.items(), ids=[f.__name__.strip("_") for f in STRUCTURE])
def test_a_broken_structure_is_rejected_whatever_its_checksums_say(read, corrupt, message):
    document, data = disassemble(GOLDEN.read_bytes())
    read(assemble(document, data), where="x")
    corrupt(document, data)
    assert_rejected(read, assemble(document, data), message)


# --- what only a reader that rebuilds the finalized model can reject --------------------------------------


def test_a_changed_value_with_repaired_checksums_fails_the_hash():
    document, data = disassemble(GOLDEN.read_bytes())
    data[tensor(document, "fc.bias")["offset"]] ^= 1
    stamp(document, data)
    assert_rejected(read_csq, assemble(document, data), "SHA-256")
    assert_rejected(unpack, assemble(document, data), "SHA-256")


def test_a_layer_packed_wider_than_its_integers_need_is_rejected():
    document, data = disassemble(version_1(one_layer(np.array([-4, 3, 1], np.int8))))
    entry = tensor(document, "w")
    stored = brute_force_stream([-4, 3, 1], 4)
    data[entry["offset"] : entry["offset"] + 2] = stored
    entry.update(bits=4, length=2)
    stamp(document, data)
    assert_rejected(read_csq, assemble(document, data), "'w' at byte .*: stored at 4 bits, the metadata say 3 bits")


def test_a_layer_stored_raw_is_rejected():
    document, data = disassemble(version_1(one_layer(np.array([-4, 3, 1], np.int8))))
    entry = tensor(document, "w")
    data[entry["offset"] : entry["offset"] + 3] = bytes([0xFC, 3, 1])
    entry.update(encoding="raw", bits=8, length=3)
    stamp(document, data)
    assert_rejected(read_csq, assemble(document, data), "'w' at byte .*: stored at no bits")


def test_a_packed_tensor_that_is_no_layer_is_rejected():
    document, data = disassemble(version_1(one_layer(np.array([1], np.int8), other=np.array([5], np.int8))))
    tensor(document, "other").update(encoding="packed", bits=8)
    assert_rejected(
        read_csq, assemble(document, data), "'other' at byte .*: stored at 8 bits, the metadata say no bits"
    )


@pytest.mark.parametrize(("old", "new", "message"), WRONG_METADATA, ids=range(len(WRONG_METADATA)))
def test_metadata_that_describe_no_such_model_are_rejected(old, new, message):
    document, data = disassemble(GOLDEN.read_bytes())
    assert old in document["metadata"]
    document["metadata"] = document["metadata"].replace(old, new, 1)
    rebuilt = b"".join(CsqFile(assemble(document, data), where="x").finalized())
    document["finalized_sha256"] = hashlib.sha256(rebuilt).hexdigest()
    assert_rejected(read_csq, assemble(document, data), f"metadata at byte 24: .*{message}")
