"""Backends of verify, and the C reader beside the Python one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from csqtool import csq, sandbox
from csqtool.errors import ConfigError
from csqtool.pipeline_file import read_pipeline
from csqtool.verifying import backends, csq_c_reader, csq_checks
from tests.support.commands import DIGITS, Built, invoke, ok

pytestmark = pytest.mark.usefixtures("one_capture")


def check(report: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in report["checks"] if c["name"] == name)
    return found


def test_a_provider_that_ran_nothing_fails_instead_of_falling_back_silently(eight_bits: Built) -> None:
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no provider that runs no node of a plain network")
    code, report = eight_bits.verify(eight_bits.onnx, "--backend", "onnxruntime:azure", "--samples", 32)
    assert code == 1
    assert "fell back to CPUExecutionProvider" in check(report, "onnxruntime:azure")["detail"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("onnxruntime:cude", "no provider 'cude'; "),
        ("reference:fast", "takes no option"),
        ("onnxruntim", "unknown backend"),
    ],
)
def test_a_backend_or_provider_that_is_not_there_is_refused(eight_bits: Built, spec: str, message: str) -> None:
    result = invoke("verify", eight_bits.onnx, "--against", eight_bits.model, "--backend", spec)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr


def test_without_openvino_its_backend_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"csqtool\[openvino\]"):
        backends.load_backends(["openvino"])


def test_openvino_passes_what_is_exported_for_it_and_names_what_it_cannot_read(
    eight_bits: Built, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    ok("export", eight_bits.model, "--format", "onnx", "--runtime", "openvino", "-o", tmp_path / "m.onnx")
    code, report = eight_bits.verify(tmp_path / "m.onnx", "--backend", "openvino", "--backend", "onnxruntime")
    assert code == 0
    assert check(report, "openvino, optimizations on")["figures"]["agreement"] >= 0.99
    code, report = eight_bits.verify(eight_bits.onnx, "--backend", "openvino")
    assert code == 1
    assert "csqtool.Weight" in check(report, "openvino, optimizations on")["detail"]


def test_a_pipeline_names_its_backends(tmp_path: Path) -> None:
    text = f'[model]\nfactory = "{DIGITS}"\n[data]\nsource = "digits"\n[search]\ntarget_bits = 3\n[verify]\n'
    (tmp_path / "p.toml").write_text(text + 'backends = ["onnxruntime", "reference"]\n')
    assert read_pipeline(tmp_path / "p.toml").backends == ("onnxruntime", "reference")
    for wrong in ('"reference"', "[]", "[1]"):
        (tmp_path / "p.toml").write_text(f"{text}backends = {wrong}\n")
        with pytest.raises(ConfigError, match=r"\[verify\]: backends(\[0\])?: expected"):
            read_pipeline(tmp_path / "p.toml")


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_reach_the_runtime(eight_bits: Built, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    call = sandbox.call

    def spy(function: str, seconds: float | None = None, **arguments: Any) -> Any:
        used.extend(arguments[name] for name in ("threads",) if name in arguments)
        return call(function, seconds, **arguments)

    monkeypatch.setattr(sandbox, "call", spy)
    assert eight_bits.verify(eight_bits.onnx, "--threads", threads, "--samples", 16)[0] == 0
    assert set(used) == {threads}
    assert invoke("verify", eight_bits.onnx, "--against", eight_bits.model, "--threads", -1).exit_code == 2


# --- the C reader ----------------------------------------------------------------------------------------------


@pytest.fixture
def compiler() -> None:
    if not any(map(shutil.which, csq_c_reader.COMPILERS)):
        pytest.skip("no C compiler is installed")


@pytest.mark.usefixtures("compiler")
def test_the_c_reader_decodes_the_same_tensors(eight_bits: Built) -> None:
    code, report = eight_bits.verify(eight_bits.csq)
    assert code == 0
    assert check(report, "C reader")["passed"]


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("before", "after", "detail"),
    [
        (b"lowest + (int32_t)symbol", b"lowest + 1 + (int32_t)symbol", "differs"),
        (b"slot != CSQ_SLOTS", b"slot == CSQ_SLOTS", "damaged"),
        (b"CSQ_API csq_status csq_open(", b"CSQ_API csq_status csq_open_it(", "does not compile it"),
    ],
)
def test_a_c_reader_that_disagrees_fails(
    eight_bits: Built, monkeypatch: pytest.MonkeyPatch, before: bytes, after: bytes, detail: str
) -> None:
    header = csq.c_header()
    assert before in header
    monkeypatch.setattr(csq_checks, "_c_header", lambda: header.replace(before, after))
    code, report = eight_bits.verify(eight_bits.csq)
    assert code == 1
    assert detail in check(report, "C reader")["detail"]


def test_without_a_compiler_there_is_no_check_of_the_c_reader(
    eight_bits: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csq_c_reader, "COMPILERS", ())
    csq_c_reader._compiled.cache_clear()
    code, report = eight_bits.verify(eight_bits.csq)
    csq_c_reader._compiled.cache_clear()
    assert code == 0
    assert not any(c["name"] == "C reader" for c in report["checks"])  # type: ignore[attr-defined]


def test_a_level_that_was_not_reached_is_a_failed_check_in_every_document(eight_bits: Built, tmp_path: Path) -> None:
    # The reference evaluator alone measures no metric.
    code, report = eight_bits.verify(eight_bits.onnx, "--backend", "reference", "--junit", tmp_path / "j.xml")
    assert code == 1
    assert [(c["level"], c["name"]) for c in report["checks"] if not c["passed"]] == [("task", "reached")]  # type: ignore[attr-defined]
    assert 'failures="1"' in (tmp_path / "j.xml").read_text()


@pytest.mark.parametrize("backend", ["reference", "openvino"])
def test_a_backend_is_not_ignored_where_a_file_is_not_run_in_it(eight_bits: Built, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    result = invoke("verify", eight_bits.csq, "--against", eight_bits.model, "--backend", backend)
    assert result.exit_code == 2
    assert "backends are for ONNX files" in result.stderr


def test_a_packed_file_is_held_to_the_gate_on_relative_difference(eight_bits: Built) -> None:
    assert eight_bits.verify(eight_bits.csq, "--max-rel-diff", 0, "--samples", 64)[0] == 0
