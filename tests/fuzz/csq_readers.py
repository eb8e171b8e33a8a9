"""Fuzzes both Python readers of the `.csq` format, guided by coverage; needs atheris (of the extra `test`).

    mkdir -p corpus
    python tests/fuzz/csq_readers.py -max_total_time=600 -max_len=8192 -rss_limit_mb=8000 corpus tests/golden

(The instrumentation itself takes more and more memory; the readers, run over the same files without it, do not.)

Each input is read as it is, and with repaired checksums, without which nothing behind them would be reached. Any
exception but `FormatError`, and any tensor on which the readers differ, is a finding.
"""

import contextlib
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["exporters", "csqtool.verify"]):
    from csq_files import with_right_checksums

    from csqtool.errors import FormatError
    from csqtool.verify.csq_decoder import decode
    from exporters.csq import CsqFile, graph


def by_exporter(content):
    file = CsqFile(content, where="x")
    tensors = {name: file.tensor(name) for name in file.entries}
    if file.graph is not None:
        with contextlib.suppress(FormatError):
            graph.rebuild(file)
    return tensors


def outcome(read, content):
    try:
        return {name: (t.dtype, t.shape, t.tobytes()) for name, t in read(content).items()}
    except FormatError:
        return None


def one_input(data):
    for content in (data, with_right_checksums(data)):
        assert outcome(by_exporter, content) == outcome(lambda c: decode(c, where="x")[0], content)
        with contextlib.suppress(FormatError):
            CsqFile(content, where="x").model()


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
