"""The C99 reader: compiled strictly, run under sanitizers, compared with both Python readers."""

import random
import shutil
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest

from csqtool.csq import CsqFile, pack
from csqtool.csq.entry import Encoding
from csqtool.finalized_file import to_bytes
from csqtool.verifying.csq_decoder import decode
from tests.support.c_reader import HEADER, SANITIZERS, STRICT, build, compiler
from tests.support.commands import invoke
from tests.support.csq_bad_streams import RANS, ROWS, one_value, rans_stream
from tests.support.csq_files import (
    GOLDEN,
    TESTS,
    correlated,
    golden_models,
    layers_of,
    one_layer,
    pruned,
    spread,
    with_right_checksums,
)
from tests.support.csq_handmade import assemble, integers, row

FILES = sorted(GOLDEN.glob("*.csq"))
MUTANTS = 1500


def run(dump, *files):
    done = subprocess.run([str(dump), *map(str, files)], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    fits = all(line.endswith(": ok") for line in lines if line.startswith(tuple(f"{file}: " for file in files)))
    assert (done.returncode, done.stderr) == (0 if fits else 1, "")  # a sanitizer ends the program otherwise
    return lines


def checksums(tensors):
    return {name: zlib.crc32(a.astype(a.dtype.newbyteorder("<")).tobytes()) for name, a in tensors.items()}


def by_c(dump, path):
    *lines, verdict = run(dump, path)
    assert verdict == f"{path}: ok"
    return {name: int(crc, 16) for crc, name in (line.split(" ", 1) for line in lines)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_c_and_both_python_readers_agree_on_every_golden_file(dump, path):
    content = path.read_bytes()
    tensors, _, _ = decode(content, where="x")
    file = CsqFile(content, where="x")
    assert by_c(dump, path) == checksums(tensors) == checksums({name: file.tensor(name) for name in file.entries})


@pytest.mark.parametrize("encoding", ["smallest", "dense"])
def test_c_reads_every_width_and_length_around_a_group_of_eight(dump, tmp_path, encoding):
    models = [
        layers_of(*(spread(n, -(1 << (b - 1)), (1 << (b - 1)) - 1).astype(np.int16) for n in (1, 7, 8, 9, 31, 64, 999)))
        for b in range(1, 10)
    ]
    for bits, model in enumerate(models, 1):
        path = tmp_path / f"{bits}.csq"
        path.write_bytes(pack(model, encoding=encoding))
        wanted = {layer.name: layer.q for layer in model.layers}
        assert {k: v for k, v in by_c(dump, path).items() if k in wanted} == checksums(wanted)


def test_every_truncation_of_a_file_is_an_error(dump, tmp_path):
    for golden in ("v2-small", "v2-graph"):
        content = (GOLDEN / f"{golden}.csq").read_bytes()
        paths = [tmp_path / f"{golden}-{size}" for size in range(len(content))]
        for size, path in enumerate(paths):
            path.write_bytes(content[:size])
        verdicts = run(dump, *paths)
        assert not any(line.endswith(": ok") for line in verdicts)
        assert sum(line.startswith(str(tmp_path)) for line in verdicts) == len(content)


def test_every_flipped_bit_is_an_error(dump, tmp_path):
    content = (GOLDEN / "v2-small.csq").read_bytes()
    paths = []
    for bit in range(len(content) * 8):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        paths.append(tmp_path / str(bit))
        paths[-1].write_bytes(changed)
    for start in range(0, len(paths), 1000):
        assert not any(line.endswith(": ok") for line in run(dump, *paths[start : start + 1000]))


def test_every_wrong_row_and_stream_is_an_error_without_an_access_beyond_the_file(dump, tmp_path):
    first = row("a", "U8", 0, 8, (1,), b"x")
    contents = {name: assemble([first, bad]) for name, (bad, _) in ROWS.items()}
    contents |= {f"entropy: {name}": integers(2, 4, stored, 9) for name, (stored, _) in RANS.items()}
    contents["many words missing"] = integers(2, 4, rans_stream(lanes=1, states=(1 << 16,) * 2), 4000)
    # Dense fields of odd widths that end with the file: eight at a time are read from whole words.
    contents |= {f"{bits} bits": integers(bits, 1, bytes(bits * 8), 64) for bits in range(1, 8)}
    for number, (name, content) in enumerate(contents.items()):
        path = tmp_path / str(number)
        path.write_bytes(content)
        verdict = run(dump, path)[-1]
        assert verdict.endswith(": ok") == (name not in ROWS and name[1:] == " bits"), name


@pytest.mark.parametrize("count", [2047, 2048, 32_767, 32_768, 262_143, 262_144])
def test_the_number_of_lanes_follows_from_the_number_of_elements(dump, tmp_path, count):
    stored = one_value(count)
    for lanes in (None, (1 << stored[4]) // 2 or 4, 2 << stored[4]):
        path = tmp_path / str(lanes)
        path.write_bytes(integers(2, 4, one_value(count, lanes), count, more=True))
        assert run(dump, path)[-1].rpartition(": ")[2] == ("damaged" if lanes else "ok")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "\x7f", "__metadata__", b"\xff", "right"])
def test_names_that_are_not_allowed_are_an_error(dump, tmp_path, name):
    (tmp_path / "m.csq").write_bytes(assemble([row(name, "U8", 0, 8, (1,), b"x")]))
    assert run(dump, tmp_path / "m.csq")[-1].rpartition(": ")[2] == ("ok" if name == "right" else "damaged")


@pytest.mark.parametrize("version", [0, 1, 4])
def test_a_version_that_the_reader_does_not_know_is_named_so(dump, tmp_path, version):
    (tmp_path / "m.csq").write_bytes(assemble([row("w", "U8", 0, 8, (1,), b"x")], version=version))
    assert run(dump, tmp_path / "m.csq") == [f"{tmp_path / 'm.csq'}: unknown csq version"]


def inner(low, high, terms=1, levels=None):
    """Return integers whose first rows, last row and some columns are pruned, the others of these values."""
    values = spread(6 * 11 * 9, low, high, terms) if levels is None else np.array(levels)[spread(6 * 11 * 9, low, high)]
    return pruned(values.astype(np.int16).reshape(6, 11, 3, 3), [0, 1, 5], [0, 4, 10])


SEEKS = {  # encoding, of the stored elements of a pruned tensor, and a model stored so
    "dense": (Encoding.DENSE, None, spread(1003, -4, 3).astype(np.int8)),
    "dense of nine bits": (Encoding.DENSE, None, spread(1003, -256, 255).astype(np.int16)),
    "ternary": (Encoding.TERNARY, None, spread(1003, -1, 1).astype(np.int8)),
    "codebook": (Encoding.CODEBOOK, None, np.array([-100, -3, 5, 90], np.int8)[spread(1003, 0, 3)]),
    "codebook of one level": (Encoding.CODEBOOK, None, np.full(1003, -7, np.int8)),
    "entropy-coded": (Encoding.RANS, None, spread(5003, -7, 7, 5).astype(np.int8)),
    "context-coded": (Encoding.CONTEXT, None, correlated((5, 4, 3, 3), 7, noise=5)),
    "context-coded, rows of 130": (Encoding.CONTEXT, None, correlated((2, 1, 3, 130), 1, noise=8)),
    "context-coded, nine bits": (Encoding.CONTEXT, None, correlated((3, 2, 2, 40), 250, np.int16, 20)),
    "pruned, context-coded": (
        Encoding.PRUNED,
        Encoding.CONTEXT,
        pruned(correlated((6, 7, 3, 3), 9, noise=5), [0, 5], [2]),
    ),
    "pruned, dense": (Encoding.PRUNED, Encoding.DENSE, inner(-256, 255)),
    "pruned, ternary": (Encoding.PRUNED, Encoding.TERNARY, inner(-1, 1)),
    "pruned, codebook": (Encoding.PRUNED, Encoding.CODEBOOK, inner(0, 2, levels=[-100, 5, 90])),
    "pruned, codebook of one level": (Encoding.PRUNED, Encoding.CODEBOOK, inner(200, 200)),
    "pruned, entropy-coded": (Encoding.PRUNED, Encoding.RANS, inner(0, 20, levels=[0] * 18 + [1, -7, 3])),
}


@pytest.mark.parametrize("case", SEEKS)
def test_seeking_to_any_element_gives_what_reading_in_order_gives(dump, tmp_path, case):
    # The program seeks to every element, the end and where it is already, as each type; it aborts on a difference.
    encoding, stored, q = SEEKS[case]
    how = {Encoding.DENSE: "dense", Encoding.CONTEXT: "context"}.get(stored or encoding, "smallest")
    content = pack(one_layer(q), encoding="smallest" if encoding is Encoding.PRUNED and how == "dense" else how)
    file = CsqFile(content, where="x")
    entry = file.entries["w"]
    assert (entry.encoding, content[entry.start] if stored else None) == (encoding, stored)
    (tmp_path / "m.csq").write_bytes(content)
    assert by_c(dump, tmp_path / "m.csq") == checksums({name: file.tensor(name) for name in file.entries})


def test_mutated_files_do_no_harm_under_sanitizers(dump, tmp_path):
    random.seed(7)
    paths = []
    for number in range(MUTANTS):
        content = bytearray(random.choice(FILES).read_bytes())
        for _ in range(random.randint(1, 4)):
            at = random.randrange(len(content))
            match random.randrange(4):
                case 0:
                    content[at] ^= 1 << random.randrange(8)
                case 1:
                    content[at : at + 4] = random.choice([b"\0" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80"])
                case 2:
                    del content[at : at + random.randint(1, 16)]
                case 3:
                    content[at:at] = content[random.randrange(len(content)) :][: random.randint(1, 16)]
        content = with_right_checksums(content)
        paths.append(tmp_path / str(number))
        paths[-1].write_bytes(content)
    verdicts = [line for line in run(dump, *paths) if line.startswith(str(tmp_path))]
    assert len(verdicts) == MUTANTS
    assert len({line.rpartition(": ")[2] for line in verdicts}) >= 4  # several rules were reached


def test_a_coverage_guided_fuzzer_finds_nothing_in_a_short_run(tmp_path):
    if shutil.which("clang") is None:
        pytest.skip("clang is not installed")
    probe = tmp_path / "probe.c"
    probe.write_text("int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n) { return !d && n; }\n")
    command = ["clang", "-fsanitize=fuzzer,address,undefined", str(probe), "-o", str(tmp_path / "probe")]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this clang has no libFuzzer")
    fuzzer = build(tmp_path / "fuzz", "-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all",
                   "-DCSQ_FUZZ", cc="clang")  # fmt: skip
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    done = subprocess.run([str(fuzzer), "-runs=5000", "-max_len=4096", "-seed=1", str(corpus), str(GOLDEN)],
                          capture_output=True, text=True, check=False, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("option", ["-O3", "-funsigned-char", "-x c++"])
def test_the_header_compiles_in_other_ways(tmp_path, option):
    if option == "-x c++":
        compiler("g++")
        source = tmp_path / "use.cpp"
        source.write_text('#include "csq.h"\nint main() { csq_file f; return csq_open(&f, "", 0) == CSQ_OK; }\n')
        subprocess.run(["g++", "-std=c++11", "-Wall", "-Wno-unused-function", f"-I{HEADER}", str(source),
                        "-o", str(tmp_path / "use")], check=True)  # fmt: skip
    else:
        build(tmp_path / "dump", option)


@pytest.mark.parametrize(("uses", "limit"), [([], 9_000), (["-DWITH_CHANNELS"], 10_000)])
def test_the_reader_stays_small_and_compiles_for_a_32_bit_target(tmp_path, uses, limit):
    source = TESTS / "c" / "size.c"
    build(tmp_path / "size.o", "-Os", "-c", *uses, source=source)
    done = subprocess.run([compiler("size"), str(tmp_path / "size.o")], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[6]) < limit  # bytes of code
    build(
        tmp_path / "arm.o", "-Os", "-c", "-mcpu=cortex-m4", "-mthumb", *uses, cc="arm-none-eabi-gcc", source=source
    )  # fmt: skip


def test_the_exported_folder_compiles_and_prints_the_checksum_of_each_tensor(tmp_path):
    model, _ = golden_models()["v2-rans"]
    (tmp_path / "m.safetensors").write_bytes(to_bytes(model))
    folder = tmp_path / "out"
    for _ in range(2):  # a second time over the first
        done = invoke("export", tmp_path / "m.safetensors", "--format", "c", "--content", "weights", "-o", folder)
        assert done.exit_code == 0, done.output
        assert sorted(f.name for f in folder.iterdir()) == ["csq.h", "example.c", "model.c", "model.h"]
    subprocess.run([compiler("gcc"), *STRICT, *SANITIZERS, str(folder / "example.c"), str(folder / "model.c"),
                    "-o", str(tmp_path / "example")], check=True)  # fmt: skip
    printed = subprocess.run([str(tmp_path / "example")], capture_output=True, text=True, check=True).stdout
    tensors, _, _ = decode(pack(model), where="x")
    assert [(line.split()[-1], int(line[:8], 16)) for line in printed.splitlines()] == list(checksums(tensors).items())


def test_an_export_to_a_place_that_is_a_file_changes_nothing(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(to_bytes(golden_models()["v2-ternary"][0]))
    (tmp_path / "out").write_text("mine")
    done = invoke("export", tmp_path / "m.safetensors", "--format", "c", "--content", "weights", "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert "cannot write" in done.stderr
    assert sorted(f.name for f in Path(tmp_path).iterdir()) == ["m.safetensors", "out"]
