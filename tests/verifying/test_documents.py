from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import junitparser
import numpy as np
import onnx
import pytest
import yaml

from csqtool.documents import convert
from csqtool.errors import FormatError
from csqtool.verifying import documents
from csqtool.verifying.findings import BisectedNode, Bisection, Check, LayerFinding, VerifyReport
from csqtool.verifying.gates import check_baseline
from tests.support.commands import ROOT, Built, invoke

pytestmark = pytest.mark.usefixtures("one_capture")

SCHEMA = json.loads((ROOT / "docs" / "verify-report.schema.json").read_text())
FACTORY = ROOT / "sample_models" / "digits_cnn" / "model.py:digits_cnn"


def check(**changes: Any) -> dict[str, Any]:
    plain = {"level": "weights", "name": "integers", "passed": True, "detail": "fine", "layer": None, "figures": {}}
    return {**plain, **changes}


def report(*checks: dict[str, Any]) -> VerifyReport:
    document = {
        "schema_version": 1, "file": "model.onnx", "against": "model.safetensors", "samples": 5, "size_bytes": 12,
        "passed": all(c["passed"] for c in checks), "average_bit_width": 3.5, "checks": list(checks), "layers": [],
    }  # fmt: skip
    return convert(VerifyReport, document, where="report")


@pytest.fixture
def broken(eight_bits: Built, tmp_path: Path) -> Path:
    proto = onnx.load(eight_bits.onnx)
    del next(n for n in proto.graph.node if n.op_type == "Conv").input[2]
    onnx.save(proto, tmp_path / "broken.onnx")
    return tmp_path / "broken.onnx"


def test_reports_fit_the_published_schema_whether_checks_hold_or_not(eight_bits: Built, broken: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for file, passed in ((eight_bits.onnx, True), (eight_bits.csq, True), (broken, False)):
        found = eight_bits.verify(file)[1]
        jsonschema.validate(found, SCHEMA)
        assert found["passed"] is passed
        assert bool(found["layers"]) is (file.suffix == ".onnx")


def test_the_published_schema_has_the_records_keys() -> None:
    bisection = SCHEMA["properties"]["bisection"]["oneOf"][1]
    kinds = {VerifyReport: SCHEMA, Check: SCHEMA["properties"]["checks"]["items"],
             LayerFinding: SCHEMA["properties"]["layers"]["items"], Bisection: bisection,
             BisectedNode: bisection["properties"]["nodes"]["items"]}  # fmt: skip
    for kind, schema in kinds.items():
        assert list(kind.__struct_fields__) == list(schema["properties"]) == schema["required"]


def test_a_report_is_read_back_as_it_was_written() -> None:
    found = VerifyReport.begin("m.onnx", "m.safetensors", 12, 3.5)
    assert not found.passed
    for level in ("integrity", "structure", "weights", "outputs", "task"):
        found.add(level, "x", True, "fine", metric=np.float64(0.25), steps=2)
    found.layers.append(LayerFinding("fc", "off", True, "fine", {"share": 0.5}))
    assert found.passed
    jsonschema.validate(found.to_json(), SCHEMA)
    assert convert(VerifyReport, found.to_json(), where="report") == found
    found.add("outputs", "x", False, "wrong", max_abs_diff=float("nan"))
    assert not found.passed
    assert found.to_json()["checks"][-1]["figures"] == {"max_abs_diff": None}


def test_junit_is_read_back_by_another_parser(eight_bits: Built, broken: Path, tmp_path: Path) -> None:
    result = invoke("verify", broken, "--against", eight_bits.model, "--junit", tmp_path / "junit.xml",
                    "--json", tmp_path / "report.json")  # fmt: skip
    assert result.exit_code == 1
    document = json.loads((tmp_path / "report.json").read_text())
    suites = junitparser.JUnitXml.fromfile(str(tmp_path / "junit.xml"))
    cases = [case for suite in suites for case in suite]
    failed = [c for c in document["checks"] if not c["passed"]]
    assert (suites.tests, suites.failures) == (len(document["checks"]), len(failed))
    assert [bool(case.result) for case in cases] == [not c["passed"] for c in document["checks"]]
    assert any("[stem.0.weight]" in case.name for case in cases if case.result)


def test_escape_codes_and_markup_in_names_are_neutralised() -> None:
    evil = "\x1b[31mred\x07 </testcase> | `x` <b>\x00"
    document = report(check(name=evil, layer=evil, passed=False, detail=evil))
    suites = junitparser.JUnitXml.fromstring(documents.junit(document))
    text = next(case.name for suite in suites for case in suite)
    assert "\\x1b[31mred" in text
    for written in (documents.junit(document).decode(), documents.markdown(document),
                    *documents.github_commands(document)):  # fmt: skip
        assert not set("\x1b\x07\x00") & set(written)
    assert "<b>" not in documents.markdown(document).replace("\\<b\\>", "")


def test_github_gets_an_error_for_each_failure_on_one_line_each() -> None:
    document = report(check(), check(passed=False, detail="50% off,\nnext: line", layer="conv:1"))
    (line,) = documents.github_commands(document)
    assert line.startswith("::error file=model.onnx,title=csqtool verify::weights: integers [conv:1]: 50%25 off")
    assert "\n" not in line
    assert documents.github_commands(report(check()))[0].startswith("::notice ")


def test_in_actions_the_summary_is_written_and_elsewhere_nothing(
    eight_bits: Built, broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    assert "::error" not in invoke("verify", broken, "--against", eight_bits.model).stderr
    assert not summary.exists()
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert "::error file=" in invoke("verify", broken, "--against", eight_bits.model).stderr
    assert "❌ FAIL" in summary.read_text()


@pytest.mark.parametrize(
    ("gate", "holds"),
    [
        (["--max-rel-diff", "0.5"], True),
        (["--max-rel-diff", "0"], False),
        (["--max-bit-width", "4"], True),
        (["--max-bit-width", "2"], False),
        (["--min-integer-share", "1"], True),
        (["--max-latency-ratio", "100", "--latency-against", "ITSELF"], True),
        (["--max-latency-ratio", "0.0001", "--latency-against", "ITSELF"], False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_gates_hold_or_fail(eight_bits: Built, gate: list[str], holds: bool) -> None:
    arguments = [str(eight_bits.onnx) if word == "ITSELF" else word for word in gate]
    code, found = eight_bits.verify(eight_bits.onnx, *arguments)
    gates = [c["passed"] for c in found["checks"] if c["level"] == "gates"]  # type: ignore[attr-defined]
    assert (code, gates) == (0 if holds else 1, [holds])


def test_a_regression_against_an_earlier_report_fails(eight_bits: Built, tmp_path: Path) -> None:
    baseline = tmp_path / "before.json"
    before = eight_bits.verify(eight_bits.onnx)[1]
    baseline.write_text(json.dumps(before))
    limits = ["--baseline", baseline, "--max-regression", "0.01"]
    assert eight_bits.verify(eight_bits.onnx, *limits)[0] == 0
    for key, value, name in (
        ("size_bytes", int(before["size_bytes"] / 1.1), "regression of the size"),  # type: ignore[call-overload]
        ("average_bit_width", 2.0, "regression of the bit width"),
    ):
        baseline.write_text(json.dumps({**before, key: value}))
        code, found = eight_bits.verify(eight_bits.onnx, *limits)
        failed = [c["name"] for c in found["checks"] if not c["passed"]]  # type: ignore[attr-defined]
        assert (code, failed) == (1, [name])
    better = json.loads(json.dumps(before))
    for one in better["checks"]:
        if "metric" in one["figures"]:
            one["figures"]["metric"] += 0.02
    baseline.write_text(json.dumps(better))
    assert eight_bits.verify(eight_bits.onnx, *limits)[0] == 1


@pytest.mark.parametrize("wrong", [{"checks": [{}]}, {"size_bytes": "x"}, {"average_bit_width": []}], ids=str)
def test_a_baseline_that_is_no_report_is_bad_input(tmp_path: Path, wrong: dict[str, object]) -> None:
    baseline = tmp_path / "before.json"
    found = VerifyReport.begin("m.onnx", "m.safetensors", 1, 1.0)
    baseline.write_text(json.dumps(found.to_json() | wrong))
    with pytest.raises(FormatError, match="is not a report of csqtool verify --json"):
        check_baseline(found, str(baseline), 0.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--baseline", "x.json"], "max-regression and baseline go together"),
        (["--max-latency-ratio", "1"], "max-latency-ratio and latency-against go together"),
        (["--baseline", "missing.json", "--max-regression", "0"], "missing.json"),
    ],
)
def test_half_a_gate_is_bad_usage(eight_bits: Built, arguments: list[str], said: str) -> None:
    result = invoke("verify", eight_bits.csq, "--against", eight_bits.model, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_every_layer_can_be_shown(eight_bits: Built) -> None:
    result = invoke("verify", eight_bits.onnx, "--against", eight_bits.model, "--layers")
    for level in ("off", "basic", "extended", "on"):
        assert any(line.split()[:2] == ["relu.output", level] for line in result.stdout.splitlines())


@pytest.mark.long
def test_the_github_action_s_script_gates_on_the_verdict_and_on_every_line_of_its_arguments(
    eight_bits: Built, broken: Path, tmp_path: Path
) -> None:
    step = yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"][1]
    assert step["env"].keys() == {"CSQTOOL_FILE", "CSQTOOL_AGAINST", "CSQTOOL_ARGUMENTS"}
    scripts = Path(sys.executable).parent
    for file, limit, wanted in ((eight_bits.onnx, "60KB", 0), (broken, "1KB", 1)):
        environment = {
            "PATH": f"{scripts}:/usr/bin:/bin", "CSQTOOL_FILE": str(file), "CSQTOOL_AGAINST": str(eight_bits.model),
            "CSQTOOL_ARGUMENTS": f"--samples 50\n--max-size {limit}\n--trust-factory {FACTORY}\n",
        }  # fmt: skip
        done = subprocess.run(["bash", "-e", "-c", step["run"]], cwd=tmp_path, env=environment, check=False)
        assert done.returncode == wanted
        found = json.loads((tmp_path / "csqtool-report.json").read_text())
        assert (found["passed"], found["samples"]) == (wanted == 0, 50)
        gates = [c for c in found["checks"] if c["level"] == "gates"]
        assert [(c["name"], c["passed"]) for c in gates] == [("file size", wanted == 0)]
        assert (tmp_path / "csqtool-junit.xml").is_file()


def test_the_reference_evaluator_agrees_and_sees_a_broken_file(eight_bits: Built, broken: Path) -> None:
    both = ["--backend", "onnxruntime", "--backend", "reference"]
    code, found = eight_bits.verify(eight_bits.onnx, *both)
    assert code == 0
    assert any(c["name"] == "reference" and c["passed"] for c in found["checks"])  # type: ignore[attr-defined]
    code, found = eight_bits.verify(broken, *both)
    assert any(c["name"] == "reference" and not c["passed"] for c in found["checks"])  # type: ignore[attr-defined]


def test_a_backend_that_is_not_there_is_no_pass(eight_bits: Built) -> None:
    result = invoke("verify", eight_bits.onnx, "--against", eight_bits.model, "--backend", "onnxruntim")
    assert result.exit_code == 2
    assert result.stderr == "error: unknown backend 'onnxruntim'; did you mean 'onnxruntime'?\n"
