"""Scales and biases of inference files, as the C reader gives them."""

import subprocess

import numpy as np
import pytest

from csqtool.csq import CsqFile, pack
from csqtool.csq.channels import decode_records
from csqtool.csq.inference import CHANNELS
from tests.support.c_reader import SANITIZERS, build
from tests.support.csq_files import GOLDEN, TESTS, inference_model
from tests.support.inference_files import STREAMS, ZEROS, bare, one_record


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
