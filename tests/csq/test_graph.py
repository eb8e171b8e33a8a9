"""The ONNX graph in a `.csq` package: rebuilt bit for bit by two readers, written apart."""

import hashlib
import math
import struct
import zlib

import numpy as np
import pytest

from csqtool.csq import CsqFile, graph, pack
from csqtool.errors import FormatError
from csqtool.verifying.csq_decoder import graph_part
from csqtool.verifying.csq_graph import rebuild
from tests.support.csq_files import (
    GOLDEN,
    golden_onnx,
    one_layer,
    spread,
)
from tests.support.csq_handmade import SMALL, assemble, by_decoder, disassemble, memory_within_four_times, row, sealed


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
