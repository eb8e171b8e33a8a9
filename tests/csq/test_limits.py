"""What a small `.csq` file can cost a reader: memory and time stay in proportion to the file."""

import dataclasses
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import csqtool.csq
from csqtool.csq import CsqFile, container, context, pack, rans
from csqtool.errors import ExportError, FormatError
from csqtool.model_info import ModelInfo
from csqtool.quantized_model import ActivationQuantizer, QuantizedLayer, QuantizedModel
from csqtool.verifying.csq_c_reader import c_checksums
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
def test_more_tensors_than_any_model_has_are_rejected(read):
    content = assemble([row(f"{i:05x}", "I8", 3, 1, (1,), b"") for i in range(65_537)])
    with memory_within_four_times(content):
        assert_rejected(read, content, "65537 tensors")


@pytest.mark.parametrize("read", [by_codec, by_decoder], ids=["codec", "verifier"])
def test_a_table_of_tiny_tensors_takes_at_most_a_kilobyte_for_each(read):
    content = assemble([row(f"{i:05x}", "U8", 0, 8, (1,), b"x") for i in range(4096)])
    tracemalloc.start()
    try:
        assert len(read(content)) == 4096
        assert tracemalloc.get_traced_memory()[1] < 4096 * 1024
    finally:
        tracemalloc.stop()


def test_metadata_of_more_values_than_may_be_parsed_are_neither_written_nor_read(monkeypatch):
    monkeypatch.setattr(container, "PARSED_FLOOR", 0)
    model = one_layer(np.array([1, -1], np.int8))
    most = dataclasses.replace(model, info=ModelInfo({"data": {"counts": [0] * 10_000}}))
    with pytest.raises(ExportError, match="metadata hold too many values"):
        pack(most)
    monkeypatch.undo()
    content = pack(most)
    monkeypatch.setattr(container, "PARSED_FLOOR", 0)
    assert_rejected(checked, content, "more values than the file's size justifies")


def test_thousands_of_small_layers_with_quantizers_fit_a_file(tmp_path):
    # Of tensors of a few values, most of a file is its table.
    layers, activations, tensors = [], [], {}
    for i in range(2000):
        name = f"blocks.{i}"
        activations.append(ActivationQuantizer(f"{name}.relu.output", np.float32(0.5), 0, 8))
        q = np.array([[1, -1], [0, i % 3]], np.int8)
        layers.append(QuantizedLayer(f"{name}.conv.weight", q, np.float32(0.5), "11", f"{name}.relu.output"))
        tensors |= {f"{name}.bn.{part}": np.zeros(2, np.float32) for part in ("weight", "bias", "running_mean")}
    model = QuantizedModel(tuple(layers), tuple(activations), tensors)
    content = pack(model)
    assert len(checked(content, where="x").layers) == 2000
    assert len(by_decoder(content)) == 14_000
    found = c_checksums(content, (Path(csqtool.csq.__file__).parent / "c" / "csq.h").read_bytes())
    assert found is None or len(found) == 14_000  # None: there is no C compiler


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


@pytest.mark.parametrize("read", [by_codec, by_decoder], ids=["codec", "verifier"])
def test_a_context_coded_stream_that_turns_out_damaged_has_taken_no_memory_for_the_tensor(read):
    count = 3 << 15
    stored = context.encode(np.zeros(count, np.int16), context.Kernel(1, 1)) + b"\0\0"  # words left over
    content = assemble(
        [row("w", "I16", 7, 2, (count,), stored), row("z", "U8", 0, 8, (1 << 12,), bytes(1 << 12))], version=3
    )
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=r"'w' at byte .*left"):
            read(content)
        assert tracemalloc.get_traced_memory()[1] < 190_000  # the tensor takes 196,608 bytes
    finally:
        tracemalloc.stop()
