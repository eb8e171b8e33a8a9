"""Context coding, version 3 of the `.csq` format: three readers, written apart, and when the writer takes it."""

import subprocess
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csqtool.csq import CsqFile, context, integer_bytes, pack, unpack
from csqtool.csq.entry import Encoding
from csqtool.errors import FormatError
from csqtool.finalized_file import to_bytes
from tests.support.commands import ok
from tests.support.csq_bad_streams import CONTEXTS, context_stream
from tests.support.csq_files import (
    GOLDEN,
    correlated,
    golden_models,
    layers_of,
    one_layer,
    with_right_checksums,
)
from tests.support.csq_handmade import READERS, assemble, assert_rejected, by_codec, by_decoder, checked, row

CONTENT = (GOLDEN / "v3-context.csq").read_bytes()


def coded(q, bits, kind="I8", **fields):
    """Return a version 3 file of one tensor, context-coded whether that is small or not."""
    stored = context.encode(q.reshape(-1), context.kernel_of(q.shape))
    return assemble([row("w", kind, 7, bits, q.shape, stored, **fields)], version=3)


def read_by_c(dump, path, *contents):
    """Return the checksums of the tensors by name for each content; None where the C reader refuses it."""
    paths = [path / str(number) for number in range(len(contents))]
    for file, content in zip(paths, contents, strict=True):
        file.write_bytes(content)
    done = subprocess.run([str(dump), *map(str, paths)], capture_output=True, text=True, check=False)
    assert done.returncode <= 1, done.stderr  # a sanitizer, or a difference between ways to read
    found, tensors, left = [], {}, [str(file) for file in paths]
    for line in done.stdout.splitlines():
        if left and line.startswith(f"{left[0]}: "):
            found.append(tensors if line.endswith(": ok") else None)
            tensors, left = {}, left[1:]
        else:
            tensors[line[9:]] = int(line[:8], 16)
    assert len(found) == len(contents)
    return found


def learned(count, answer):
    """Yield the slots of yes before each of the same answers."""
    p = 32768
    for n in range(1, count + 1):
        yield p // 16
        s = max(1, (min(n, 255) + 1).bit_length() - 1)
        p = p + (65535 - p) // 2**s if answer else p - p // 2**s


def outcome(read, content):
    try:
        return {k: (v.dtype, v.shape, v.tobytes()) for k, v in read(content).items()}
    except FormatError:
        return None


@st.composite
def tensors(draw):
    bits = draw(st.integers(1, 9))
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=2, max_size=5)))
    shape = draw(st.sampled_from([shape, (*shape[:2], 3, 3), (1, 1, 2, 128), (1, 2, 2, 129), (shape[0],), ()]))
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    width = draw(st.floats(0.1, 1.0)) * high if draw(st.booleans()) else draw(st.sampled_from([0.3, 1e9]))
    q = rng.normal(0, width + 0.3, shape).round().clip(low, high)
    return np.asarray(q).astype(np.int8 if bits <= 8 and draw(st.booleans()) else np.int16), bits


@settings(deadline=None)
@given(tensors())
def test_any_integers_come_back_from_both_python_readers(case):
    q, bits = case
    content = coded(q, bits, "I8" if q.dtype == np.int8 else "I16")
    for read in (by_codec, by_decoder):
        found = read(content)["w"]
        assert (found.dtype, found.shape, found.tobytes()) == (q.dtype, q.shape, q.tobytes())


def test_any_integers_come_back_from_the_c_reader(dump, tmp_path):
    rng = np.random.default_rng(5)
    contents, wanted = [], []
    for number in range(200):
        bits = number % 9 + 1
        shape = [(3, 2, 3, 3), (2, 3, 5), (7, 9), (1, 2, 2, 128), (1, 1, 3, 129), (50,), (2, 2, 2, 2, 2)][number % 7]
        low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        width = rng.choice([0.4, high / 2 + 0.2, 1000])
        q = rng.normal(0, width, shape).round().clip(low, high).astype(np.int16)
        contents.append(coded(q, bits, "I16"))
        wanted.append({"w": zlib.crc32(q.astype("<i2").tobytes())})
    assert read_by_c(dump, tmp_path, *contents) == wanted


@settings(deadline=None, max_examples=30)
@given(st.lists(tensors(), min_size=1, max_size=3))
def test_a_file_is_never_larger_than_without_contexts_and_of_version_2_where_they_save_nothing(cases):
    model = layers_of(*(q for q, _ in cases))
    content, old = pack(model, encoding="context"), pack(model)
    uses = any(e.encoding is Encoding.CONTEXT or (content[e.start] == 7 and e.encoding is Encoding.PRUNED)
               for e in CsqFile(content, where="x").entries.values())  # fmt: skip
    assert content[8] == (3 if uses else 2)
    assert old[8] == 2
    if uses:
        assert len(content) <= len(old)
    else:
        assert content == old
    assert unpack(content, where="x") == to_bytes(model)
    assert outcome(by_decoder, content) == outcome(by_codec, content)


def test_smooth_kernels_take_a_tenth_less_than_their_smallest_encoding_of_version_2():
    q = correlated((40, 30, 3, 3), 3, noise=9)
    smallest, best = (CsqFile(pack(one_layer(q), encoding=e), where="x").entries["w"] for e in ("smallest", "context"))
    assert (smallest.encoding, best.encoding) == (Encoding.RANS, Encoding.CONTEXT)
    assert best.length < 0.9 * smallest.length
    assert best.length <= integer_bytes(q)  # what a target size counts is never exceeded


@READERS
def test_the_specifications_example_is_read(read):
    content = assemble([row("w", "I8", 7, 3, (1, 1, 2, 2), bytes.fromhex("e890a815"))], version=3)
    found = CsqFile(content, where="x").tensor("w") if read is checked else read(content, where="x")[0]["w"]
    assert found.tolist() == [[[[1, 1], [-2, 0]]]]


def test_no_answers_make_the_next_one_certain():
    # A larger p stays larger whatever is answered: the same answer again and again leads furthest.
    for answer, furthest in ((0, 3), (1, 4092)):
        assert list(learned(2000, answer))[-1] == furthest
    zeros = context_stream(*(("zero", 0) for _ in range(2000)))
    assert context.encode(np.zeros(2000, np.int8), context.Kernel(1, 1)) == zeros


@READERS
@pytest.mark.parametrize("case", CONTEXTS)
def test_a_corrupted_context_coder_is_rejected(read, case):
    stored, message = CONTEXTS[case]
    assert_rejected(
        read, assemble([row("w", "I8", 7, 3, (1, 1, 2, 2), stored)], version=3), f"'w' at byte .*({message})"
    )


@pytest.mark.parametrize("case", CONTEXTS)
def test_a_corrupted_context_coder_is_rejected_by_the_c_reader(dump, tmp_path, case):
    content = assemble([row("w", "I8", 7, 3, (1, 1, 2, 2), CONTEXTS[case][0])], version=3)
    assert read_by_c(dump, tmp_path, content) == [None]


def test_the_version_tells_whether_contexts_are_used_in_all_readers(dump, tmp_path):
    plain, stored = row("w", "I8", 1, 3, (2,), b"\x05"), bytes.fromhex("e890a815")
    whole = row("w", "I8", 7, 3, (1, 1, 2, 2), stored)
    inside = row("w", "I8", 6, 3, (2, 1, 2, 2), b"\7\1\1" + stored)
    for tensor, right in ((plain, 2), (whole, 3), (inside, 3)):
        for version in (2, 3):
            content = assemble([tensor], version=version)
            outcomes = [outcome(by_codec, content), outcome(by_decoder, content), *read_by_c(dump, tmp_path, content)]
            assert [found is not None for found in outcomes] == [version == right] * 3


def test_more_context_coded_elements_than_python_decodes_in_time_are_refused(dump, tmp_path):
    filler = row("z", "U8", 0, 8, (1 << 19,), bytes(1 << 19))
    outcomes = {}
    for count in (1 << 24, (1 << 24) + 1):
        for encoding, stored in ((7, b"\0\0\1\0"), (6, b"\7\1" + b"\1" + bytes((count + 7) // 8 - 1) + b"\0\0\1\0")):
            shape = (count,) if encoding == 7 else (1, count)
            content = assemble([row("w", "I8", encoding, 3, shape, stored), filler], version=3)
            messages = []
            for read in (by_codec, by_decoder):
                with pytest.raises(FormatError) as caught:
                    read(content)
                messages.append("context-coded elements" in str(caught.value))
            outcomes[count, encoding] = messages
            assert read_by_c(dump, tmp_path, content) == [None]
    assert outcomes == {
        (count, encoding): [count > 1 << 24] * 2 for count in (1 << 24, (1 << 24) + 1) for encoding in (6, 7)
    }


def test_the_writer_keeps_the_limit_on_context_coded_elements(monkeypatch):
    q = correlated((8, 6, 3, 3), 3, noise=5)
    model = layers_of(q, q, q)
    monkeypatch.setattr(context, "MAX_ELEMENTS", 2 * q.size)
    entries = CsqFile(pack(model, encoding="context"), where="x").entries
    assert [entries[f"w{i}"].encoding for i in range(3)] == [Encoding.CONTEXT, Encoding.CONTEXT, Encoding.RANS]


def test_a_file_that_contexts_would_make_too_small_for_its_tensors_takes_the_encodings_of_version_2():
    # Nearly all zeros: 64 times the file would be less than the tensors.
    q = np.zeros((16, 512, 3, 3), np.int8)
    q[:, ::11, 0, 0] = 1
    q[0, 0] = q[:, 0] = q[0, :, 0, 0] = 1
    smallest = pack(one_layer(q))
    stored = CsqFile(smallest, where="x").entries["w"]
    assert stored.encoding is Encoding.RANS
    shorter = len(context.encode(q.reshape(-1), context.kernel_of(q.shape)))
    assert (len(smallest) - stored.length + shorter) * 64 < q.size
    assert pack(one_layer(q), encoding="context") == smallest


def mutants(count, seed):
    """Yield changed golden files with right checksums; most changes are in the streams, some in the table."""
    rng = np.random.default_rng(seed)
    table = int.from_bytes(CONTENT[16:20], "little")
    entries = [e for e in CsqFile(CONTENT, where="x").entries.values() if e.is_quantized]
    for _ in range(count):
        changed = bytearray(CONTENT)
        for _ in range(int(rng.integers(1, 4))):
            entry = entries[int(rng.integers(0, len(entries)))]
            where = (entry.start, entry.start + entry.length) if rng.random() < 0.9 else (88, 88 + table)
            at = int(rng.integers(*where))
            match int(rng.integers(0, 4)):
                case 0:
                    changed[at] ^= 1 << int(rng.integers(0, 8))
                case 1:
                    changed[at] = int(rng.choice([0, 255, 7, 128]))
                case 2:
                    changed[at : where[1]] = bytes(where[1] - at)
                case 3:
                    changed[at : where[1]] = rng.bytes(where[1] - at)
        yield with_right_checksums(changed)


def swapped():
    """Yield golden files whose tensors claim other shapes or widths: streams that decode to other kernels."""
    table = {e.name: e for e in CsqFile(CONTENT, where="x").entries.values()}
    for name in ("w0", "w2", "w3", "w4", "w5", "w6"):
        entry = table[name]
        stored = CONTENT[entry.start : entry.start + entry.length]
        for shape in ((entry.elements,), (1, 1, entry.elements), (1, entry.elements), (1, 1, 2, entry.elements // 2)):
            for bits in (entry.bits, 8):
                yield assemble([row("w", "I16", 7, bits, shape, stored)], version=3)
        for dropped in (2, 4):
            yield assemble([row("w", "I16", 7, entry.bits, entry.shape, stored[:-dropped])], version=3)


@pytest.mark.parametrize(("count", "seed"), [(30, 3), pytest.param(500, 4, marks=pytest.mark.slow)])
def test_all_readers_agree_on_every_mutant(dump, tmp_path, count, seed):
    contents = [*mutants(count, seed), *swapped()]
    by_python = [outcome(by_codec, content) for content in contents]
    assert by_python == [outcome(by_decoder, content) for content in contents]
    wanted = [found and {k: zlib.crc32(raw) for k, (_, _, raw) in found.items()} for found in by_python]
    assert read_by_c(dump, tmp_path, *contents) == wanted


def test_streams_made_to_end_right_are_read_alike_whatever_they_say(dump, tmp_path):
    # Random answers with the end of a right stream: every decision is reached, the longest magnitudes included.
    rng = np.random.default_rng(1)
    contents = []
    for bits in (2, 5, 8, 9):
        for shape in ((1, 2, 3, 3), (2, 2, 5), (9, 2)):
            q = rng.integers(-256, 256, shape).astype(np.int16)  # most beyond their bits
            q.flat[rng.random(q.size) < 0.3] //= 64
            contents.append(coded(q, bits, "I16"))
    found = [outcome(by_codec, content) for content in contents]
    assert [one is not None for one in found] == [False] * 9 + [True] * 3
    assert found == [outcome(by_decoder, content) for content in contents]
    assert [one is not None for one in read_by_c(dump, tmp_path, *contents)] == [False] * 9 + [True] * 3


def test_pack_export_inspect_report_and_unpack_know_the_encoding(tmp_path):
    model, _ = golden_models()["v3-context"]
    (tmp_path / "m.safetensors").write_bytes(to_bytes(model))
    ok("pack", tmp_path / "m.safetensors", "--encoding", "context", "-o", tmp_path / "m.csq")
    assert (tmp_path / "m.csq").read_bytes()[8] == 3
    shown = ok("inspect", tmp_path / "m.csq").stdout
    assert "context 6, dense 1, pruned (context) 1" in shown
    assert '"w1": "pruned (context)"' in ok("inspect", tmp_path / "m.csq", "--json").stdout
    ok("export", tmp_path / "m.safetensors", "--format", "c", "--encoding", "context", "-o", tmp_path / "c")
    octets = (tmp_path / "c" / "model.c").read_text().partition("{")[2].partition("}")[0].split(",")
    assert bytes(int(octet, 16) for octet in octets) == (tmp_path / "m.csq").read_bytes()
    ok("report", tmp_path / "m.csq", "-o", tmp_path / "r.html")
    assert "context 6, dense 1, pruned (context) 1" in (tmp_path / "r.html").read_text()
    ok("unpack", tmp_path / "m.csq", "-o", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == to_bytes(model)
