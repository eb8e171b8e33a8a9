"""Inference files that are damaged or hostile: both Python readers, the C reader and the verifier."""

import contextlib
import subprocess
import zlib

import numpy as np
import pytest

from csqtool.csq import CsqFile, pack, read_csq
from csqtool.csq.channels import decode_records
from csqtool.csq.inference import ACTIVATIONS, CHANNELS
from csqtool.errors import ExportError, FormatError
from csqtool.quantized_model import QuantizedLayer, QuantizedModel
from csqtool.verifying.csq_decoder import decode
from csqtool.verifying.inference_checks import inference_problems
from tests.support.c_reader import SANITIZERS, build
from tests.support.commands import invoke
from tests.support.csq_files import GOLDEN, TESTS, inference_model, one_layer, with_right_checksums
from tests.support.csq_handmade import assemble, assert_rejected, disassemble, memory_within_four_times
from tests.support.csq_inference import problems


def bare():
    """Return a model of one layer with two channels and a BatchNorm."""
    norm = {f"bn.{part}": np.array([0.5, 1], np.float32) for part in ("weight", "bias", "running_mean", "running_var")}
    layer = QuantizedLayer("l.weight", np.array([[1], [-1]], np.int8), np.float32(0.5), "1", None, "bn", 1e-5)
    return QuantizedModel((layer,), (), {**norm, "bn.num_batches_tracked": np.array(0, np.int64)})


def one_record(kinds, *words):
    """Return the inference file of this model, with these words as its record."""
    stored = np.array([kinds, *words], "<u2").tobytes()
    rows, metadata, digest = disassemble(pack(bare(), inference=True))
    changed = {CHANNELS: {"stored": stored, "length": len(stored), "shape": (len(stored) // 2,)}}
    return assemble([r | changed.get(r["name"].decode(), {}) for r in rows], metadata, digest)


ZEROS = [0] * 4
STREAMS = {
    "no scales": one_record(16 + 256),
    "an unknown kind of scales": one_record(2 + 256, *ZEROS, *ZEROS),
    "too many bits of exponent": one_record(22 + 256, 0, 0, 0, *ZEROS),
    "an unknown kind of biases": one_record(16 + 5 * 256, 0, 0, 0, *ZEROS),
    "scales missing": one_record(16 + 256, 0, 0),
    "biases missing": one_record(16 + 256, 0, 0, 0, 0, 0, 0),
    "a word too many": one_record(16 + 256, 0, 0, 0, *ZEROS, 0),
    "a scale beyond float32": one_record(16 + 256, 112, 0, 0, *ZEROS),
    "an exponent below float32": one_record(16 + 256, 65536 - 150, 0, 0, *ZEROS),
    "a scale of zero": one_record(1 + 256, 0, 0, 0, 0x3F80, *ZEROS),
    "a negative scale": one_record(1 + 256, 0, 0xBF80, 0, 0x3F80, *ZEROS),
    "an infinite scale": one_record(1 + 256, 0, 0x7F80, 0, 0x3F80, *ZEROS),
    "a bias that is not a number": one_record(16 + 256, 0, 0, 0, 0, 0x7FC0, 0, 0),
    "an infinite half": one_record(16 + 512, 0, 0, 0, 0x7C00, 0),
}


@pytest.mark.parametrize("case", STREAMS)
def test_a_wrong_stream_of_scales_and_biases_is_refused_by_both_readers(case):
    content = STREAMS[case]
    with memory_within_four_times(content):
        assert_rejected(read_csq, content, "metadata at byte")
    ((name, _),) = problems(content, bare())
    assert name == CHANNELS


METADATA = [
    ('"layers":[', '"layers":{},"x":[', "layers is {}, expected a list"),
    ('"layers":[', '"layers":[1,', "a layer is 1, expected an object"),
    ('"layers":[{', '"layers":[{"shape":[2],', "a layer has an unknown key 'shape'"),
    ('"name":"l.weight"', '"name":5', "name is 5, expected str"),
    ('"name":"l.weight",', "", "a layer has no name"),
    ('"name":"l.weight"', '"name":"k.weight"', "the layers of the metadata are not the tensors of integers"),
    ('"batch_norm":"bn"', '"batch_norm":7', "batch_norm is 7, expected str"),
    ('"batch_norm":"bn"', '"batch_norm":"l"', "l.weight: a tensor that follows from|repeated tensor names"),
    ('"batch_norm":"bn",', "", "needs a BatchNorm, its epsilon and biases|epsilon without the BatchNorm"),
    (',"epsilon":1e-05', "", "needs a BatchNorm, its epsilon and biases"),
    ('"epsilon":1e-05', '"epsilon":-1.0', "epsilon must be finite and not negative"),
    ('"epsilon":1e-05', '"epsilon":1', "epsilon is 1, expected float"),
    ('"epsilon":1e-05', '"epsilon":1e999', "not finite"),
    ('"epsilon":1e-05', '"epsilon":1e300', "bn: an epsilon of 1e\\+300 takes it beyond float32"),
    ('"epsilon":1e-05', '"epsilon":1e-05,"bias":1', "bias is 1, expected bool"),
    ('"epsilon":1e-05', '"epsilon":1e-05,"input_quantizer":"gone"', "unknown activation quantizer gone"),
    ('"activations":[]', '"activations":["a"]', "':activations' is missing"),
    ('"activations":[]', '"activations":{}', "activations is {}, expected a list"),
    ('"tied":{}', '"tied":{"a":5}', "expected an object of names"),
    ('"tied":{}', '"tied":{"a":"gone"}', "tied to layers that do not exist: gone"),
    (',"tied":{}', "", "'tied' is missing"),
    ("}],", "}],]", "not JSON"),
]


@pytest.mark.parametrize(("old", "new", "message"), METADATA)
def test_metadata_that_describe_no_inference_file_are_refused_in_one_line(tmp_path, old, new, message):
    rows, metadata, digest = disassemble(pack(bare(), inference=True))
    assert old in metadata.decode()
    content = assemble(rows, metadata.decode().replace(old, new, 1).encode(), digest)
    assert_rejected(read_csq, content, f"metadata at byte .*({message})")
    assert problems(content, bare()) != []
    (tmp_path / "m.csq").write_bytes(content)
    done = invoke("unpack", tmp_path / "m.csq", "-o", tmp_path / "m.safetensors")
    assert (done.exit_code, done.stderr.count("\n"), (tmp_path / "m.safetensors").exists()) == (2, 1, False)


def test_biases_beyond_float32_and_activations_without_names_are_refused():
    rows, metadata, digest = disassemble(pack(inference_model(), inference=True, encoding="dense"))
    words = {r["name"].decode(): np.frombuffer(r["stored"], "<u2").copy() for r in rows if r["dtype"] == 3}
    words[ACTIVATIONS][:2] = [0, 0x7F00]  # the input's scale is 2^127
    words[CHANNELS][1] = 20  # exponent of the first layer's scales, which are then at least 2^32
    for name, text, message in (
        (CHANNELS, metadata, "a.weight: biases beyond float32"),
        (ACTIVATIONS, metadata.replace(b'["a.input","c.output"]', b"[]"), "6 words of activations"),
    ):
        changed = [
            r | {"stored": words[r["name"].decode()].tobytes()} if r["name"].startswith(b":") else r for r in rows
        ]
        content = assemble(changed, text, digest)
        assert_rejected(read_csq, content, message)
        assert problems(content, inference_model()) != [], name


def test_a_layer_that_is_stored_as_floats_is_not_taken_for_integers():
    rows, metadata, digest = disassemble(pack(bare(), inference=True))
    for value in (np.array([[1], [-1]], "<f4"), np.array([[np.nan], [1]], "<f4")):
        floats = {"dtype": 10, "encoding": 0, "bits": 32, "stored": value.tobytes(), "length": 8}
        content = assemble([r | floats if r["name"] == b"l.weight" else r for r in rows], metadata, digest)
        assert_rejected(read_csq, content, "the layers of the metadata are not the tensors of integers")
        assert problems(content, bare()) != []


def test_metadata_that_are_nested_deeply_are_refused():
    rows, metadata, digest = disassemble(pack(bare(), inference=True))
    for depth in (900, 3000, 100_000):
        deep = metadata.replace(b',"tied"', b',"x":' + b"[" * depth + b"]" * depth + b',"tied"', 1)
        assert problems(assemble(rows, deep, digest), bare()) != []


def test_a_graph_in_an_inference_file_is_refused():
    rows, metadata, digest = disassemble(pack(bare(), inference=True))
    recipe = {"graph_part": zlib.compress(b"x"), "graph_size": 1}
    assert_rejected(
        read_csq, assemble(rows, metadata, digest, **recipe), "graph at byte .*an inference file has no graph"
    )


def test_damage_that_repaired_checksums_hide_is_refused_or_found_and_never_a_bug():
    model, content = inference_model(), (GOLDEN / "v2-inference.csq").read_bytes()
    before = decode(content, where="x")
    rng = np.random.default_rng(0)
    unnoticed = []
    for _ in range(250):
        changed, at = bytearray(content), int(rng.integers(88, len(content)))
        changed[at] ^= 1 << int(rng.integers(0, 8))
        changed = with_right_checksums(changed)
        with contextlib.suppress(FormatError):
            read_csq(changed, where="x")
        try:
            tensors, metadata, _ = decode(changed, where="x")
        except FormatError:
            continue
        if not inference_problems(tensors, metadata, model):
            same = [name for name, t in before[0].items() if t.tobytes() == tensors[name].tobytes()]
            unnoticed.append((at, metadata == before[1] and same == list(tensors)))
    assert [at for at, same in unnoticed if not same] == []
    assert unnoticed  # of checksums, which are repaired, and of bits that zlib does not use


def test_what_an_inference_file_cannot_hold_is_not_packed():
    with pytest.raises(ExportError, match="a tensor of its own called ':channels'"):
        pack(one_layer(np.array([1], np.int8), **{CHANNELS: np.zeros(1, np.float32)}), inference=True)
    with pytest.raises(ExportError, match="holds no ONNX graph"):
        pack(one_layer(np.array([1], np.int8)), inference=True, onnx=b"x")


@pytest.fixture(scope="module")
def channels(tmp_path_factory):
    return build(tmp_path_factory.mktemp("c") / "channels", *SANITIZERS, source=TESTS / "c" / "channels.c")


def by_c(program, *paths):
    """Return what the C reader prints of each file, a list of lines that ends with its verdict."""
    done = subprocess.run([str(program), *map(str, paths)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")  # a sanitizer ends the program otherwise
    found, lines = [], []
    for line in done.stdout.splitlines():
        lines.append(line.rpartition(": ")[2])
        if line.startswith(tuple(f"{path}: " for path in paths)):
            found.append(lines)
            lines = []
    return found


def test_the_c_reader_gives_the_same_scales_and_biases(channels, tmp_path):
    contents = [(GOLDEN / "v2-inference.csq").read_bytes(), pack(inference_model(), inference=True, half=True),
                one_record(16 + 5 + 256, 65536 - 149, 0, 65535, *ZEROS)]  # fmt: skip
    paths = [tmp_path / str(i) for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    for content, lines in zip(contents, by_c(channels, *paths), strict=True):
        file = CsqFile(content, where="x")
        layers = {name: entry.shape for name, entry in file.entries.items() if entry.is_quantized}
        records = decode_records(file.tensor(CHANNELS), [shape[0] for shape in layers.values()])
        for (name, shape), record, line in zip(layers.items(), records, lines, strict=False):
            first, *values = line.split()
            scales = np.array([float.fromhex(value) for value in values[: shape[0]]], np.float32)
            assert (first, scales.tolist()) == (name, np.broadcast_to(record.scale, shape[:1]).tolist())
            biases = [] if record.bias is None else record.bias.astype(np.float64).tolist()
            assert [float.fromhex(v) if "x" in v else float(v) for v in values[shape[0] :]] == biases
        assert lines[len(layers) :] == ["ok"]


def test_the_c_reader_refuses_the_same_streams_within_the_file(channels, tmp_path):
    paths = [tmp_path / str(i) for i in range(len(STREAMS))]
    for path, content in zip(paths, STREAMS.values(), strict=True):
        path.write_bytes(content)
    assert [lines[-1] for lines in by_c(channels, *paths)] == ["damaged"] * len(STREAMS)
    (tmp_path / "archival").write_bytes(pack(bare()))
    assert by_c(channels, tmp_path / "archival") == [["no such tensor"]]
