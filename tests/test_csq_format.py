"""The `.csq` format: bit streams, round trips, golden files, and everything a reader must reject.

Two readers stand against each other: the exporter's, and the verifier's, which shares no code with it.
`golden/v1.csq` is ``pack(small_model())``, written once when version 1 was fixed. It is kept for ever: a
change that breaks its test needs a new version number and a golden file of its own, never a new v1.csq.
"""

import ast
import copy
import hashlib
import itertools
import json
import math
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import csqtool.verify.csq_decoder
import exporters.csq
from csqtool.errors import ExportError, FormatError
from csqtool.finalized_file import parse_finalized, to_bytes
from csqtool.quantized_model import ActivationQuantizer, QuantizedLayer, QuantizedModel
from csqtool.verify.csq_decoder import decode
from exporters.csq import CsqExporter, pack, pack_integers, read_csq, unpack, unpack_integers

HERE = Path(__file__).parent
GOLDEN = HERE / "golden" / "v1.csq"
SPECIFICATION = HERE.parent / "docs" / "csq-format.md"
MAGIC = b"\x89CSQ\r\n\x1a\n"
READERS = pytest.mark.parametrize("read", [read_csq, decode], ids=["exporter", "decoder"])

# Widths with streams worked out by hand: value i in bits [i*k, (i+1)*k), lowest bit first.
HAND_COMPUTED = {
    "one bit": (1, [0, -1, -1, 0, 0, 0, 0, -1, -1], "86 01"),
    "two bits": (2, [1, -1, 0, -2, 1], "8d 01"),
    "three bits": (3, [-1, 0, 3, -4, 1], "c7 18"),
    "four bits": (4, [-8, 7, 1], "78 01"),
    "eight bits": (8, [-128, 127, -1], "80 7f ff"),
    "nine bits": (9, [-255, 255, -256], "01 ff 01 04"),
    "nine bits, a full group": (9, [0, 0, 0, 0, 0, 0, 0, -1], "00 00 00 00 00 00 00 80 ff"),
}


def small_model():
    return QuantizedModel(
        layers=(
            QuantizedLayer(
                "conv.weight",
                np.array([-4, 3, 0, -1, 2, 1, -3], np.int8).reshape(7, 1, 1),
                np.float32(0.125),
                "00000111",
                input_quantizer="conv.input",
                batch_norm="bn",
            ),
            QuantizedLayer("fc.weight", np.array([[-255, 255, 17]], np.int16), np.float32(0.1), "11111111"),
        ),
        activations=(ActivationQuantizer("conv.input", np.float32(0.5), 3, 4),),
        tensors={
            "fc.bias": np.array([1.5, -0.25, 3.0], np.float32),
            "bn.num_batches_tracked": np.array(42, np.int64),
            "keep": np.array([True, False, True]),
        },
        tied={"head.weight": "fc.weight"},
        info={"model": "net.py:größe", "metrics": {"accuracy": 0.875}},
    )


def one_layer(q, **more):
    return QuantizedModel((QuantizedLayer("w", np.asarray(q), np.float32(0.5), "11"),), (), more)


def brute_force_stream(values, bits):
    """The specification, word for word, in Python's long integers."""
    number = sum((int(v) % 2**bits) << (i * bits) for i, v in enumerate(values))
    return number.to_bytes(math.ceil(len(values) * bits / 8), "little")


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


@st.composite
def streams(draw):
    bits = draw(st.integers(1, 9))
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    values = draw(st.lists(st.one_of(st.sampled_from([low, high]), st.integers(low, high)), max_size=41))
    dtype = np.int16 if bits == 9 else draw(st.sampled_from([np.int8, np.int16]))
    return np.array(values, dtype), bits


# --- streams ---------------------------------------------------------------------------------------------


@given(streams())
def test_packing_equals_a_brute_force_encoder_and_both_decoders_undo_it(case):
    q, bits = case
    stream = pack_integers(q, bits)
    assert stream == brute_force_stream(q, bits)
    restored = unpack_integers(stream, q.size, bits, q.dtype)
    decoded = decode(stream_file(stream, q.size, bits, "I8" if q.dtype == np.int8 else "I16"), where="x")[0]["w"]
    for other in (restored, decoded):
        assert other.dtype == q.dtype
        np.testing.assert_array_equal(other, q)


@pytest.mark.parametrize("bits", range(1, 10))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 8 * (1 << 14) + 3])
def test_sizes_around_a_group_and_a_block_survive_at_every_width(bits, count):
    q = np.random.default_rng(count).integers(-(1 << (bits - 1)), 1 << (bits - 1), count).astype(np.int16)
    stream = pack_integers(q, bits)
    if count < 100:
        assert stream == brute_force_stream(q, bits)
    np.testing.assert_array_equal(unpack_integers(stream, count, bits, q.dtype), q)
    np.testing.assert_array_equal(decode(stream_file(stream, count, bits, "I16"), where="x")[0]["w"], q)


@pytest.mark.parametrize(("bits", "values", "expected"), HAND_COMPUTED.values(), ids=HAND_COMPUTED)
def test_streams_equal_hand_computed_bytes(bits, values, expected):
    assert pack_integers(np.array(values), bits).hex(" ") == expected


@pytest.mark.parametrize("bits", range(1, 10))
@pytest.mark.parametrize("side", [-1, 1])
def test_values_outside_the_width_are_refused_never_masked(bits, side):
    value = -(1 << (bits - 1)) - 1 if side < 0 else 1 << (bits - 1)
    with pytest.raises(ExportError, match=f"do not fit {bits} bits"):
        pack_integers(np.array([0, value], np.int16), bits)


@pytest.mark.parametrize("bits", [0, 10, -1])
def test_widths_outside_one_to_nine_are_refused(bits):
    with pytest.raises(ExportError, match="1 to 9 bits"):
        pack_integers(np.array([0]), bits)


def test_floats_are_not_packed():
    with pytest.raises(ExportError, match="float32"):
        pack_integers(np.zeros(3, np.float32), 3)


# --- whole files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        small_model(),
        one_layer(np.array(3, np.int8)),
        one_layer(np.zeros((3, 5), np.int8)),
        one_layer(np.zeros((0, 4), np.int8)),
        one_layer(np.array([-1, 0, 0], np.int8)),
        one_layer(np.array([-1, 1], np.int16)),
        one_layer(np.array([[-255, 255, -256]], np.int16)),
        one_layer(np.arange(-4, 2, dtype=np.int8).reshape(2, 3).T),
        one_layer(np.array([1], np.int8), empty=np.zeros((2, 0), np.float64), scalar=np.array(7, np.uint8)),
        one_layer(np.array([1], np.int8), fortran=np.asfortranarray(np.arange(6.0).reshape(2, 3))),
        one_layer(np.array([1], np.int8), big=np.arange(3, dtype=">f4")),
    ],
    ids=[
        "small model",
        "scalar",
        "all zeros",
        "no elements",
        "one bit",
        "int16 at two bits",
        "nine bits",
        "transposed",
        "empty and scalar",
        "Fortran order",
        "big endian",
    ],
)
def test_unpack_restores_the_finalized_file_bit_for_bit(model):
    content = pack(model)
    assert unpack(content, where="x") == to_bytes(model)
    assert to_bytes(read_csq(content, where="x")) == to_bytes(model)
    tensors, metadata, digest = decode(content, where="x")
    assert digest == hashlib.sha256(to_bytes(model)).hexdigest()
    assert [layer["bit_width"] for layer in json.loads(metadata)["layers"]] == [x.bit_width for x in model.layers]
    for layer in model.layers:
        assert tensors[layer.name].dtype == layer.q.dtype
        np.testing.assert_array_equal(tensors[layer.name], layer.q, strict=True)
    for name, array in model.tensors.items():
        np.testing.assert_array_equal(tensors[name], array, strict=array.dtype.isnative)


@settings(max_examples=40)
@given(st.lists(streams(), min_size=1, max_size=4))
def test_any_model_comes_back_bit_for_bit(cases):
    layers = [QuantizedLayer(f"l{i}", q, np.float32(0.3), "1") for i, (q, _) in enumerate(cases)]
    model = QuantizedModel(tuple(layers), (), {})
    content = pack(model)
    assert unpack(content, where="x") == to_bytes(model)
    tensors = decode(content, where="x")[0]
    for layer in layers:
        np.testing.assert_array_equal(tensors[layer.name], layer.q, strict=True)


@pytest.mark.parametrize("dtype", exporters.csq.DTYPES)
def test_every_dtype_of_the_finalized_file_is_carried(dtype):
    array = np.array([0, 1, 1, 0, 1], exporters.csq.DTYPES[dtype])
    content = pack(one_layer(np.array([1], np.int8), other=array))
    np.testing.assert_array_equal(read_csq(content, where="x").tensors["other"], array, strict=True)
    np.testing.assert_array_equal(decode(content, where="x")[0]["other"], array, strict=True)


def test_the_same_model_gives_the_same_bytes_whatever_the_order_of_its_tensors():
    model = small_model()
    backwards = QuantizedModel(
        model.layers, model.activations, dict(reversed(model.tensors.items())), model.tied, model.info
    )
    assert pack(model) == pack(small_model()) == pack(backwards)
    assert pack(parse_finalized(to_bytes(model), where="x")) == pack(model)


def test_nothing_but_packed_bits_is_stored_for_the_integers():
    entries = {entry["name"]: entry for entry in disassemble(pack(small_model()))[0]["tensors"]}
    assert (entries["conv.weight"]["bits"], entries["conv.weight"]["length"]) == (3, 3)
    assert (entries["fc.weight"]["bits"], entries["fc.weight"]["length"]) == (9, 4)


def test_the_golden_file_of_version_1_is_written_and_read():
    golden = GOLDEN.read_bytes()
    assert pack(small_model()) == golden
    assert unpack(golden, where="v1.csq") == to_bytes(small_model())
    tensors = decode(golden, where="v1.csq")[0]
    assert tensors["conv.weight"].ravel().tolist() == [-4, 3, 0, -1, 2, 1, -3]
    assert tensors["fc.weight"].tolist() == [[-255, 255, 17]]
    assert tensors["fc.bias"].tolist() == [1.5, -0.25, 3.0]
    assert tensors["bn.num_batches_tracked"] == 42


def test_the_specification_shows_the_bytes_that_are_written():
    text = SPECIFICATION.read_text(encoding="utf-8")
    assert GOLDEN.read_bytes()[:24].hex(" ") in text
    for case in ("three bits", "nine bits"):
        assert f"`{HAND_COMPUTED[case][2]}`" in text
    for name in exporters.csq.DTYPES:
        assert f"`{name}`" in text


def test_the_hash_can_be_checked_without_the_safetensors_library():
    # Annex A of the specification: the finalized file, rebuilt by hand from what the second decoder returns.
    order = ["U64", "I64", "F64", "C64", "F32", "U32", "I32", "F16", "U16", "I16", "I8", "U8", "BOOL"]
    others = {d: np.array([0, 1], exporters.csq.DTYPES[d]) for d in order}
    for model in (small_model(), one_layer(np.array([1], np.int8), **others)):
        document, _ = disassemble(pack(model))
        tensors, metadata, digest = decode(pack(model), where="x")
        header, data = {"__metadata__": {"csqtool": metadata}}, b""
        for entry in sorted(document["tensors"], key=lambda e: (order.index(e["dtype"]), e["name"])):
            stored = tensors[entry["name"]].astype(exporters.csq.DTYPES[entry["dtype"]]).tobytes()
            place = [len(data), len(data) + len(stored)]
            header[entry["name"]] = {"dtype": entry["dtype"], "shape": entry["shape"], "data_offsets": place}
            data += stored
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        rebuilt = struct.pack("<Q", len(text)) + text + data
        assert rebuilt == to_bytes(model)
        assert hashlib.sha256(rebuilt).hexdigest() == digest


def test_the_exporter_writes_the_file_and_has_nothing_to_note(tmp_path):
    path = tmp_path / "new" / "model.csq"
    assert CsqExporter().export(small_model(), path) == []
    assert path.read_bytes() == pack(small_model())
    assert (CsqExporter.name, CsqExporter.suffix) == ("csq", ".csq")
    assert "\n" not in CsqExporter.description


def test_a_failed_export_preserves_the_existing_file(tmp_path):
    path = tmp_path / "model.csq"
    path.write_bytes(b"old")
    with pytest.raises(ExportError):
        CsqExporter().export(one_layer(np.array([1], np.int8), bad=np.zeros(2, np.complex128)), path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("model.csq", b"old")]


def test_the_two_decoders_share_no_code():
    for module, foreign in ((csqtool.verify.csq_decoder, "exporters"), (exporters.csq, "verify")):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(foreign in name for name in names)


# --- what the writer refuses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("t", np.zeros(2, np.complex128), "cannot store complex128"),
        ("t", np.array([None]), "cannot store object"),
        ("t", np.zeros((1,) * 33, np.int8), "33 axes"),
        ("__metadata__", np.zeros(1), "reserves the name"),
        ("t\ud800", np.zeros(1), "UTF-8"),
        ("t", np.frombuffer(b"\x01\x02", np.bool_), "neither 0 nor 1"),
        ("t", np.broadcast_to(np.zeros(1, np.int8), (2**20, 2**20, 2**9)), "elements"),
    ],
    ids=["dtype", "object", "axes", "reserved name", "surrogate", "boolean", "size"],
)
def test_tensors_that_the_format_cannot_carry_are_refused(name, array, message):
    with pytest.raises(ExportError, match=message):
        pack(one_layer(np.array([1], np.int8), **{name: array}))


@pytest.mark.parametrize("value", [math.nan, object(), "\ud800"], ids=["nan", "object", "surrogate"])
def test_descriptions_that_json_cannot_carry_are_refused(value):
    model = one_layer(np.array([1], np.int8))
    with pytest.raises(ExportError, match="not valid JSON in UTF-8"):
        pack(QuantizedModel(model.layers, (), {}, {}, {"metrics": value}))


def test_a_header_beyond_the_limit_is_refused(monkeypatch):
    monkeypatch.setattr(exporters.csq, "MAX_HEADER_BYTES", 100)
    with pytest.raises(ExportError, match="at most 100"):
        pack(small_model())


# --- what both readers reject ----------------------------------------------------------------------------


def assert_rejected(read, content, message="."):
    with pytest.raises(FormatError, match=message) as caught:
        read(bytes(content), where="dir/some.csq")
    assert str(caught.value).startswith("dir/some.csq")


@READERS
def test_every_flipped_bit_is_noticed(read):
    content = bytearray(pack(small_model()))
    for i, bit in itertools.product(range(len(content)), range(8)):
        content[i] ^= 1 << bit
        with pytest.raises(FormatError, match=r"^x"):
            read(bytes(content), where="x")
        content[i] ^= 1 << bit
    read(bytes(content), where="x")


@READERS
def test_every_truncation_is_noticed(read):
    content = pack(small_model())
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
        ({"version": 2}, "csq version 2"),
        ({"length": 2**32 - 1}, "header (length|of) 4294967295"),
        ({"length": 64 * 2**20 + 8}, "67108872"),
        ({"length": 64 * 2**20}, "truncated"),
        ({"length": 9}, "multiple of 8"),
        ({"crc": 1}, "damaged header"),
        ({"reserved": 1}, "reserved field"),
    ],
)
def test_a_wrong_preamble_is_rejected(read, fields, message):
    assert_rejected(read, assemble(*disassemble(pack(small_model())), **fields), message)


@READERS
@pytest.mark.parametrize(
    "header",
    [b"", b"{", b"\xff\xfe{}", b"[" * 100_000, b"1" * 10_000, b"{}{}", b"\xef\xbb\xbf{}", b"\xed\xa0\x80"],
    ids=["empty", "cut", "not UTF-8", "deeply nested", "endless number", "two documents", "BOM", "surrogate"],
)
def test_a_header_that_is_no_json_is_rejected(read, header):
    assert_rejected(read, assemble(header, b""), "not JSON in UTF-8")


@READERS
@pytest.mark.parametrize("header", [b"[]", b"null", b"1", b'"tensors"', b"{}"])
def test_a_header_that_is_no_complete_object_is_rejected(read, header):
    assert_rejected(read, assemble(header, b""), "header (keys|is not|lacks)")


@READERS
@pytest.mark.parametrize("key", ["metadata", "tensors", "finalized_sha256", "name", "crc32", "shape"])
def test_a_key_that_stands_twice_is_rejected(read, key):
    document, data = disassemble(pack(small_model()))
    text = json.dumps(document).replace(f'"{key}":', f'"{key}": 1, "{key}":', 1)
    assert_rejected(read, assemble(text.encode(), data), f"key '{key}'.*twice")


@READERS
def test_unknown_and_missing_keys_are_rejected(read):
    document, data = disassemble(pack(small_model()))
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
    "name": [None, 1, True, [], "__metadata__", "\ud800"],
    "dtype": [None, 1, [], {}, "", "i8", "BF16", "F8_E4M3", "float32", "I128"],
    "encoding": [None, 1, [], {}, "", "Raw", "zstd"],
    "shape": [None, 7, "7", {}, [True], [7.0], ["7"], [None], [[7]], [-7, -1], [-1], [7] + [1] * 32],
    "bits": [None, True, "3", 3.0, -3, 0, 10, 2**63, 10**4000, math.nan, math.inf, [3]],
    "offset": [None, True, "0", 0.0, -8, 2**63, 10**4000, math.nan],
    "length": [None, True, "3", 3.0, -3, 0, 2, 4, 2**63, 10**4000],
    "crc32": [None, True, "0", 0.5, -1, 2**32, 2**63],
}


@READERS
@pytest.mark.parametrize(
    ("key", "value"),
    [(k, v) for k, values in WRONG_VALUES.items() for v in values],
    ids=lambda x: f"{x!r:.20}",
)
def test_wrong_types_and_values_are_rejected(read, key, value):
    document, data = disassemble(pack(small_model()))
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
    document, data = disassemble(pack(one_layer(np.array([-1], np.int8))))  # one value of one bit in one byte
    assert tensor(document, "w")[key] == value
    tensor(document, "w")[key] = value
    assert_rejected(read, assemble(document, data), key)


@READERS
@pytest.mark.parametrize(
    "shape", [[2**49], [2**40, 2**40], [2**32, 2**32], [0, 2**62, 4], [2**63 - 1] * 32, [0, 2**49]]
)
def test_a_product_of_dimensions_that_overflows_is_rejected(read, shape):
    document, data = disassemble(pack(small_model()))
    for length in (0, 3, (math.prod(shape) * 3 + 7) // 8 % 2**62, 2**62):
        tensor(document, "conv.weight").update(shape=shape, length=length)
        assert_rejected(read, assemble(document, data), "elements")


@READERS
@pytest.mark.parametrize(("name", "shape"), [("conv.weight", [2**40]), ("fc.bias", [2**40]), ("keep", [2**20, 2**20])])
def test_a_huge_tensor_in_a_small_file_is_rejected_before_memory_is_taken(read, name, shape):
    document, data = disassemble(pack(small_model()))
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
    document, data = disassemble(pack(small_model()))
    read(assemble(document, data), where="x")
    corrupt(document, data)
    assert_rejected(read, assemble(document, data), message)


# --- what only a reader that rebuilds the finalized model can reject --------------------------------------


def test_a_changed_value_with_repaired_checksums_fails_the_hash():
    document, data = disassemble(pack(small_model()))
    data[tensor(document, "fc.bias")["offset"]] ^= 1
    stamp(document, data)
    assert_rejected(read_csq, assemble(document, data), "SHA-256")
    assert_rejected(unpack, assemble(document, data), "SHA-256")


def test_a_layer_packed_wider_than_its_integers_need_is_rejected():
    document, data = disassemble(pack(one_layer(np.array([-4, 3, 1], np.int8))))
    entry = tensor(document, "w")
    stored = brute_force_stream([-4, 3, 1], 4)
    data[entry["offset"] : entry["offset"] + 2] = stored
    entry.update(bits=4, length=2)
    stamp(document, data)
    assert_rejected(read_csq, assemble(document, data), "'w' is packed at 4 bits, the metadata say 3 bits")


def test_a_layer_stored_raw_is_rejected():
    document, data = disassemble(pack(one_layer(np.array([-4, 3, 1], np.int8))))
    entry = tensor(document, "w")
    data[entry["offset"] : entry["offset"] + 3] = bytes([0xFC, 3, 1])
    entry.update(encoding="raw", bits=8, length=3)
    stamp(document, data)
    assert_rejected(read_csq, assemble(document, data), "'w' is packed at no bits")


def test_a_packed_tensor_that_is_no_layer_is_rejected():
    document, data = disassemble(pack(one_layer(np.array([1], np.int8), other=np.array([5], np.int8))))
    tensor(document, "other").update(encoding="packed", bits=8)
    assert_rejected(read_csq, assemble(document, data), "'other' is packed at 8 bits, the metadata say no bits")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"format_version":1', '"format_version":2'),
        ('"format_version":1', '"format_version":1,"x":' + "[" * 50_000 + "]" * 50_000),
        ('"format_version":1', '"format_version":1,"x":NaN'),
        ('"format_version":1', '"format_version":1,"x":"\\ud800"'),
        ('"format_version":1', '"format_version":1,"x":1'),
        ('"bit_width":3', '"bit_width":4'),
        ('"scale":0.125', '"scale":0.25'),
        ('"mask":"00000111"', '"mask":"2"'),
        ('"bits":4', '"bits":1e999'),
        ('"bits":4', '"bits":99'),
        ('"name":"conv.weight"', '"name":"nowhere"'),
        ('"name":"conv.weight"', '"name":[]'),
        ('"layers":[', '"layers":[1,'),
        ('"tied":{"head.weight":"fc.weight"}', '"tied":{"head.weight":"gone"}'),
        ('"tied":{"head.weight":"fc.weight"}', '"tied":[]'),
        ("{", ""),
    ],
)
def test_metadata_that_describe_no_such_model_are_rejected(old, new):
    document, data = disassemble(pack(small_model()))
    assert old in document["metadata"]
    document["metadata"] = document["metadata"].replace(old, new, 1)
    assert_rejected(read_csq, assemble(document, data))
