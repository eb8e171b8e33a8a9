"""Every command that reads JSON, JSON lines or TOML, over documents that are not what they should be."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from click.testing import Result

from csqtool.searching.config import SearchConfig
from csqtool.searching.run_directory import RunDirectory
from csqtool.verifying.findings import VerifyReport
from tests.support.commands import DIGITS, Built, invoke

MALFORMED: dict[str, bytes] = {
    "empty": b"",
    "null": b"null",
    "a number": b"5",
    "a text": b'"x"',
    "an object": b"{}",
    "a list": b"[5]",
    "an empty list": b"[]",
    "checks without keys": b'{"checks":[{}]}',
    "a mask alone": b'[{"mask":"1"}]',
    "a mask that is a number": b'[{"mask":1}]',
    "a long mask": json.dumps(
        [{"name": "x", "precision": 1, "mask": "1" * 10_000, "bit_width": 1, "elements": 1}]
    ).encode(),
    "deep lists": b"[" * 100_000,
    "deep lists in an unknown key": b'{"zzz":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 100_000,
    "not a number": b'{"checks": NaN}',
    "a number without end": b'{"target_bits": 1e999, "model": "x", "data": "digits"}',
    "an integer without end": b'{"size_bytes": ' + b"9" * 5_000 + b"}",
    "not UTF-8": b'{"checks": "\xff"}',
    "half a character": b'{"checks": "\\ud800"}',
    "cut": b'{"checks": [{"level": "weights"',
    "a key twice": b'{"checks": [], "checks": 1}',
    "more after the end": b"{} {}",
    "zeros": bytes(100),
}
WRONG: list[Any] = [None, True, -1, 1.5, 10**400, 1e308, "x", "", "\0", [], [None], {}, {"x": None}]


def check(result: Result, arguments: object = None) -> None:
    """Check that a command did what it should, or said in a line why not."""
    assert result.exit_code in (0, 1, 2), (arguments, result.output[-500:])
    if result.exit_code == 2:
        told = [line.startswith("error:") for line in result.stderr.splitlines()]
        assert told.count(True) == 1, (arguments, result.stderr)
        assert told[-1], (arguments, result.stderr)


def wrong_types(document: Any) -> Iterator[Any]:
    """Yield the document with a key left out, or another value in its place, at any depth."""
    for path in list(paths(document)):
        for value in [..., *WRONG]:
            changed = copy.deepcopy(document)
            place = changed
            for step in path[:-1]:
                place = place[step]
            if value is ...:
                del place[path[-1]]
            else:
                place[path[-1]] = value
            yield changed


def paths(document: Any, *, most: int = 2) -> Iterator[tuple[Any, ...]]:
    """Yield where values are; of a list, those of its first items."""
    items = document.items() if isinstance(document, dict) else list(enumerate(document))[:most]
    for key, value in items:
        yield (key,)
        if isinstance(value, dict | list):
            yield from ((key, *rest) for rest in paths(value, most=1))


def a_report() -> dict[str, Any]:
    report = VerifyReport.begin("m.onnx", "m.safetensors", 5, 3.5)
    report.add("outputs", "x", True, "fine", "fc", max_abs_diff=0.5, agreement=1.0)
    return {**report.to_json(), "layers": [
        {"name": "fc", "optimizations": "on", "passed": True, "detail": "fine", "figures": {"share": 0.0}}
    ]}  # fmt: skip


A_BENCH = {"threads": 1, "batch": 1, "rounds": 1, "files": [
    {"file": "m.onnx", "size_bytes": 1, "median_ms": 1.0, "ratio": 1.0, "load_ms": 1.0, "load_peak_bytes": 1,
     "kernels": {"Conv": 1}}
]}  # fmt: skip


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_malformed_documents_are_refused_by_every_command_that_takes_a_file(tmp_path: Path, content: bytes) -> None:
    good = tmp_path / "good.json"
    good.write_text(json.dumps(a_report()))
    for name in ("x.json", "x.jsonl", "x.toml", "scheme.json", "summary.json"):
        (tmp_path / name).write_bytes(content)
        for arguments in (("inspect",), ("inspect", "--json"), ("report", "-o", tmp_path / "r.html"), ("diff", good),
                          ("run",)):  # fmt: skip
            check(invoke(*arguments, tmp_path / name), (arguments, name))
    assert not (tmp_path / "r.html").exists()
    assert invoke("diff", good, tmp_path / "x.json").exit_code == 2


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("report", marks=pytest.mark.slow),
        "bench",
        "facts",
        "scheme",
        "summary",
        pytest.param("config", marks=pytest.mark.slow),
        "start",
        "begun",
        "stages",
    ],
)
def test_keys_that_are_missing_or_of_another_type_are_refused(eight_bits: Built, tmp_path: Path, kind: str) -> None:
    run = RunDirectory(eight_bits.run)
    documents = {
        "report": a_report(),
        "bench": A_BENCH,
        "facts": {"size_bytes": 1, "float32_bytes": 2, "notes": ["x"]},
        "scheme": json.loads(run.scheme.read_text())[:1],
        "summary": json.loads(run.summary.read_text()),
        "config": SearchConfig(model="m.py:net", data="digits", target_bits=3, pin={"x": 1}, exclude=("x",)).to_json(),
        "start": {"run": "x", "metric_float": 0.5},
        "begun": {"inputs": "x", "code": {"m.py": "x"}},
        "stages": {"place": "x", "stages": {"search": {"inputs": "x", "outputs": {"x": "y"}, "code": {"x": "y"}}}},
    }
    file = tmp_path / "x.json"
    file.write_text(json.dumps(documents[kind]))
    assert invoke("inspect", file).exit_code == 0
    for document in wrong_types(documents[kind]):
        file.write_text(json.dumps(document))
        check(invoke("inspect", file), document)
        check(invoke("inspect", file, "--json"), document)
        if kind in ("report", "bench"):
            check(invoke("report", file, "-o", tmp_path / "r.html"), document)
        if kind == "report":
            check(invoke("diff", file, file), document)


def test_logs_with_wrong_keys_are_refused_and_cut_or_foreign_ones_are_shown(eight_bits: Built, tmp_path: Path) -> None:
    lines = RunDirectory(eight_bits.run).log.read_text().splitlines()
    log = tmp_path / "log.jsonl"
    for line in (lines[0], next(line for line in lines if "precision" in line)):
        for document in wrong_types(json.loads(line)):
            log.write_text(json.dumps(document) + "\n")
            check(invoke("inspect", log), document)
    foreign = json.dumps({"stage": "search", "epoch": 1, "temperature": {"of": "mine"}})
    log.write_text(f'{foreign}\n{lines[0]}\n{{"stage": "sea')
    shown = json.loads(invoke("inspect", log, "--json").stdout)
    assert shown["epochs"] == [json.loads(foreign), json.loads(lines[0])]
    assert invoke("inspect", log).exit_code == 0


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("config.json", marks=pytest.mark.slow),
        "scheme.json",
        pytest.param("summary.json", marks=pytest.mark.slow),
        "log.jsonl",
        "begun-from.json",
    ],
)
def test_a_run_directory_with_a_malformed_file_is_refused(eight_bits: Built, tmp_path: Path, name: str) -> None:
    shutil.copytree(eight_bits.run, tmp_path / "run")
    file = tmp_path / "run" / name
    good = json.loads(file.read_text()) if name.endswith(".json") and file.is_file() else None
    contents = list(MALFORMED.values())
    contents += [json.dumps(document).encode() for document in wrong_types(good)][::3] if good else []
    for content in contents:
        file.write_bytes(content)
        check(invoke("inspect", tmp_path / "run"), content[:80])
        check(invoke("report", tmp_path / "run", "-o", tmp_path / "r.html"), content[:80])
        if name in ("config.json", "summary.json"):
            check(invoke("search", "--resume", tmp_path / "run"), content[:80])


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
def test_finalize_refuses_a_malformed_run(eight_bits: Built, tmp_path: Path, name: str) -> None:
    shutil.copytree(eight_bits.run, tmp_path / "run")
    for content in MALFORMED.values():
        (tmp_path / "run" / name).write_bytes(content)
        result = invoke("finalize", tmp_path / "run", "-o", tmp_path / "m.safetensors")
        check(result, content[:80])
        assert result.exit_code == 2
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.long
def test_a_search_refuses_a_malformed_scheme(tmp_path: Path) -> None:
    scheme = tmp_path / "scheme.json"
    one = [{"name": "x", "precision": 1, "mask": "1", "bit_width": 2, "elements": 1}]
    contents = [*MALFORMED.values(), *(json.dumps(document).encode() for document in wrong_types(one))]
    for content in contents:
        scheme.write_bytes(content)
        result = invoke("search", DIGITS, "--data", "digits", "--target-bits", 3, "--method", "lsq", "--epochs", 1,
                        "--scheme", scheme, "-o", tmp_path / "run", "--overwrite")  # fmt: skip
        check(result, content[:80])
        assert result.exit_code == 2


def test_verify_refuses_a_malformed_baseline(eight_bits: Built, tmp_path: Path) -> None:
    baseline = tmp_path / "before.json"
    for content in (MALFORMED["checks without keys"], MALFORMED["deep lists"], MALFORMED["not a number"]):
        baseline.write_bytes(content)
        result = invoke("verify", eight_bits.csq, "--against", eight_bits.model, "--samples", 4, "--baseline", baseline,
                        "--max-regression", 0)  # fmt: skip
        assert (result.exit_code, result.stderr.count("error:")) == (2, 1)


@pytest.mark.long
def test_pipeline_files_with_wrong_types_are_refused(tmp_path: Path) -> None:
    config = SearchConfig(model="m.py:net", data="digits", target_bits=3, pin={"x": 1}, exclude=("x",)).to_json()
    apart = ("model", "data", "model_args", "task", "weights")
    document = {
        "output": "build",
        "model": {"factory": "missing.py:net", "args": {"x": 1}, "weights": "w.safetensors"},
        "data": {"source": "digits", "task": "classification"},
        "search": {key: value for key, value in config.items() if key not in apart and value is not None},
        "export": {"formats": ["onnx"], "onnx": {"weights": "int8"}},
        "verify": {"samples": 1, "backends": ["onnxruntime"], "max_size": 1, "min_metric": 0.5,
                   "tolerances": {"metric": 1}},
    }  # fmt: skip
    file = tmp_path / "p.toml"
    file.write_text(tomli_w.dumps(document))
    assert invoke("inspect", file).exit_code == 0
    for changed in wrong_types(document):
        try:
            text = tomli_w.dumps(changed)
        except (TypeError, ValueError):
            continue  # TOML has no null
        file.write_text(text)
        check(invoke("inspect", file), changed)
        result = invoke("run", file)
        check(result, changed)
        assert result.exit_code == 2  # at the latest because the model is missing
