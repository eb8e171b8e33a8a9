"""A short run of the fuzzer, and that it sees what it looks for."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from csqtool.errors import FormatError
from tests.support import fuzz_mutators as mutators
from tests.support import fuzz_targets as targets
from tests.support.csq_files import GOLDEN
from tests.support.csq_handmade import by_codec
from tests.support.fuzz_targets import TARGETS, fuzz

SHORT = {"csq": 80, "onnx": 10, "finalized": 100, "report": 20, "run": 40, "checkpoint": 5, "pickle": 1000}


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_a_short_run_finds_nothing(name: str, tmp_path: Path) -> None:
    found = fuzz(name, seconds=300, runs=SHORT[name], seed=1, keep=tmp_path)
    assert found.findings == {}
    assert found.executions == SHORT[name]


def test_an_error_that_is_none_of_csqtools_is_a_finding_once_and_its_file_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(self: targets.Target, content: bytes) -> None:
        if content not in self.corpus():
            raise KeyError("labels")

    monkeypatch.setattr(targets.Pickle, "check", check)
    found = fuzz("pickle", seconds=60, runs=20, seed=0, keep=tmp_path)
    ((kind, path),) = found.findings.items()
    assert kind.startswith("KeyError at test_fuzz.py:")
    assert path.read_bytes()


def test_a_file_that_keeps_a_reader_busy_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(self: targets.Target, content: bytes) -> None:
        while content not in self.corpus():
            pass

    monkeypatch.setattr(targets.Pickle, "check", check)
    monkeypatch.setattr(targets, "MOST_SECONDS", 0.1)
    (kind,) = fuzz("pickle", seconds=60, runs=2, seed=0, keep=tmp_path).findings
    assert kind.startswith("TooLongError")


def test_changed_csq_files_often_get_beyond_their_checksums() -> None:
    draw, content = random.Random(0), (GOLDEN / "v2-rans.csq").read_bytes()
    deep = 0
    for _ in range(100):
        try:
            by_codec(mutators.changed_csq(draw, content))
            deep += 1
        except FormatError as error:
            deep += "damaged" not in str(error) and "truncated" not in str(error)
    assert deep > 80
