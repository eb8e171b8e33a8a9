"""Fuzzes both Python readers of the `.csq` format, guided by coverage; needs atheris (of the extra `test`).

    mkdir -p corpus
    python tests/fuzz/csq_readers.py -max_total_time=600 -max_len=8192 -rss_limit_mb=8000 corpus tests/golden

(The instrumentation itself takes more and more memory; the readers, run over the same files without it, do not.)

Each input is read as it is, and with repaired checksums, without which nothing that they guard would be reached. Any
exception but `FormatError`, and any tensor on which the readers differ, is a finding.
"""

import contextlib
import sys
from pathlib import Path

import atheris
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["csqtool.csq", "csqtool.verifying"]):
    from csqtool.csq import CsqFile, graph
    from csqtool.errors import FormatError
    from csqtool.verifying.csq_decoder import decode, graph_part
    from csqtool.verifying.csq_graph import rebuild
    from csqtool.verifying.inference_checks import inference_problems
    from tests.support.csq_files import inference_model, with_right_checksums

MODEL = inference_model()


def by_codec(content):
    file = CsqFile(content, where="x")
    tensors = {name: file.tensor(name) for name in file.entries}
    return tensors | onnx_of(file.graph, lambda: graph.rebuild(file))


def by_verifier(content):
    tensors, _, _ = decode(content, where="x")
    recipe, _ = graph_part(content, where="x")
    return tensors | onnx_of(recipe, lambda: rebuild(recipe, list(tensors.values()), 64 * len(content)))


def onnx_of(recipe, rebuilt):
    """Return the ONNX file that comes out, under a name that no tensor has; nothing where it is rejected."""
    if recipe is None:
        return {}
    try:
        return {"/": np.frombuffer(rebuilt(), np.uint8)}
    except FormatError:
        return {}


def outcome(read, content):
    try:
        return {name: (t.dtype, t.shape, t.tobytes()) for name, t in read(content).items()}
    except FormatError:
        return None


def one_input(data):
    for content in (data, with_right_checksums(data)):
        assert outcome(by_codec, content) == outcome(by_verifier, content)
        with contextlib.suppress(FormatError):
            CsqFile(content, where="x").model()
        with contextlib.suppress(FormatError):
            tensors, metadata, _ = decode(content, where="x")
            inference_problems(tensors, metadata, MODEL)  # raises nothing, whatever the file says


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
