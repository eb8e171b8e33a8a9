from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from csqtool.diffing import Change, diff
from csqtool.finalized_file import read_finalized, write_finalized
from csqtool.model_info import ModelInfo
from csqtool.quantized_model import QuantizedLayer, QuantizedModel
from tests.support.commands import Built, invoke, ok


def test_a_model_does_not_differ_from_itself(eight_bits: Built) -> None:
    assert diff(eight_bits.model, eight_bits.model) == []
    assert "no changes" in ok("diff", eight_bits.model, eight_bits.model, "--fail-on-change").stdout


def test_changed_integers_scales_and_tensors_are_told_apart(eight_bits: Built, tmp_path: Path) -> None:
    model = read_finalized(eight_bits.model)
    first, second, *rest = model.layers
    q = first.q.copy()
    q.reshape(-1)[:2] = np.where(q.reshape(-1)[:2] > 0, q.reshape(-1)[:2] - 1, q.reshape(-1)[:2] + 1)
    layers = (replace(first, q=q), replace(second, scale=np.float32(second.scale * 2)), *rest)
    name = "stem.1.bias"
    changed = replace(model, layers=layers, tensors={**model.tensors, name: model.tensors[name] + 1})
    write_finalized(changed, tmp_path / "b.safetensors")
    found = {(c.where, c.what): (c.before, c.after) for c in diff(eight_bits.model, tmp_path / "b.safetensors")}
    assert found[first.name, "integers"] == (None, f"2 of {first.elements} changed, by 1 at most")
    assert found[second.name, "scale"] == (float(second.scale), 2 * float(second.scale))
    assert (name, "tensor") in found
    assert {where for where, _ in found} == {first.name, second.name, name}
    result = invoke("diff", eight_bits.model, tmp_path / "b.safetensors", "--fail-on-change")
    assert result.exit_code == 1
    assert "3 changes" in result.stdout
    assert invoke("diff", eight_bits.model, tmp_path / "b.safetensors").exit_code == 0


def test_two_searches_differ_in_layers_and_totals(eight_bits: Built, other_seed: Built) -> None:
    document = json.loads(ok("diff", eight_bits.model, other_seed.model, "--json").stdout)
    what = {change["what"] for change in document["changes"]}
    assert {"integers", "scale", "tensor"} <= what


def test_reports_differ_in_verdicts_and_figures(eight_bits: Built, tmp_path: Path) -> None:
    good = eight_bits.verify(eight_bits.onnx)[1]
    bad = json.loads(json.dumps(good))
    bad["passed"], bad["checks"][0]["passed"], bad["size_bytes"] = False, False, good["size_bytes"] + 1
    for name, document in (("a", good), ("b", bad)):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    changes = diff(tmp_path / "a.json", tmp_path / "b.json")
    assert [(c.where, c.what, c.after) for c in changes] == [
        ("file", "passed", False),
        ("file", "size_bytes", bad["size_bytes"]),
        ("integrity: onnx.checker", "verdict", "FAIL"),
    ]


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"nothing"])
def test_what_is_neither_model_nor_report_is_bad_input(eight_bits: Built, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    result = invoke("diff", eight_bits.model, tmp_path / "x")
    assert result.exit_code == 2
    assert len([line for line in result.stderr.splitlines() if line.startswith("error:")]) == 1


def test_a_model_and_a_report_are_not_compared(eight_bits: Built, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(eight_bits.verify(eight_bits.csq)[1]))
    assert "compare two of a kind" in invoke("diff", eight_bits.model, tmp_path / "r.json").stderr


def a_check(name: str, passed: bool = True, **figures: float | None) -> dict[str, Any]:
    return {"level": "outputs", "name": name, "passed": passed, "detail": "", "layer": None, "figures": figures}


def a_report(*checks: dict[str, Any], **more: Any) -> dict[str, Any]:
    document = {
        "schema_version": 1, "file": "m.onnx", "against": "m.safetensors", "passed": True, "size_bytes": 1,
        "samples": 1, "average_bit_width": 1, "tolerances": {}, "checks": list(checks), "layers": [],
    }  # fmt: skip
    return document | more


def write_two(folder: Path, *documents: dict[str, Any]) -> tuple[Path, Path]:
    paths = folder / "a.json", folder / "b.json"
    for path, document in zip(paths, documents, strict=True):
        path.write_text(json.dumps(document))
    return paths


def test_changes_of_reports_stand_in_the_document_s_order(tmp_path: Path) -> None:
    names = [f"figure{i}" for i in range(8)]
    one, other = (a_check("x", **dict.fromkeys(names, value)) for value in (1.0, 2.0))
    paths = write_two(tmp_path, a_report(one), a_report(other))
    lines = ["import sys", "from pathlib import Path", "from csqtool.diffing import diff",
             "print(*(change.what for change in diff(*map(Path, sys.argv[1:]))))"]  # fmt: skip
    for seed in "12":
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", "\n".join(lines), *paths], env=environment,
                              capture_output=True, text=True, check=True)  # fmt: skip
        assert done.stdout.split() == names


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        (a_report(tolerances={"metric": 0.01}), a_report(tolerances={"metric": 0.5}),
         [("tolerances", "metric", 0.01, 0.5)]),
        (a_report(a_check("x", a=1, b=None)), a_report(a_check("x", a=1, c=3)),
         [("outputs: x", "b", None, None), ("outputs: x", "c", None, 3)]),
        (a_report(a_check("x", False), a_check("x")), a_report(a_check("x"), a_check("x")),
         [("outputs: x", "verdict", "FAIL", "ok")]),
        (a_report(a_check("x"), a_check("x", False)), a_report(a_check("x")),
         [("outputs: x (2)", "verdict", "FAIL", None)]),
        (a_report(layers=[{"name": "fc", "optimizations": "on", "passed": True, "detail": "", "figures": {"d": 0}}]),
         a_report(layers=[{"name": "fc", "optimizations": "on", "passed": False, "detail": "", "figures": {"d": 1}}]),
         [("fc: on", "verdict", "ok", "FAIL"), ("fc: on", "d", 0, 1)]),
    ],
)  # fmt: skip
def test_all_that_a_report_says_is_compared(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any], wanted: list[tuple[Any, ...]]
) -> None:
    paths = write_two(tmp_path, one, other)
    assert diff(*paths) == [Change(*change) for change in wanted]
    assert invoke("diff", *paths, "--fail-on-change").exit_code == 1


def test_what_a_model_records_of_its_making_is_compared(tmp_path: Path) -> None:
    layer = QuantizedLayer("fc.weight", np.array([[1, -3], [0, 2]], np.int8), np.float32(0.5), "11")
    infos = (
        {
            "data": {"source": "digits"},
            "method": {"name": "csq", "seed": 0},
            "metrics": {"name": "top1", "finalized": 1},
        },
        {
            "data": {"source": "other"},
            "method": {"name": "bsq", "seed": 1},
            "metrics": {"name": "top1", "finalized": 0},
        },
    )
    paths = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for path, info in zip(paths, infos, strict=True):
        write_finalized(QuantizedModel((layer,), (), {}, info=ModelInfo(info)), path)
    assert [(c.where, c.what, c.before, c.after) for c in diff(*paths)] == [
        ("model", "data.source", "digits", "other"),
        ("model", "method.name", "csq", "bsq"),
        ("model", "method.seed", 0, 1),
        ("model", "top1", 1, 0),
    ]


@pytest.mark.parametrize(
    "wrong",
    [{"checks": [{}]}, {"checks": 1}, {"checks": [1]}, {"checks": [a_check("x") | {"figures": {"metric": "x"}}]},
     {"size_bytes": "x"}, {"average_bit_width": None}, {"layers": [{}]}, {"tolerances": []}, {"samples": 10**400}],
    ids=str,
)  # fmt: skip
def test_a_report_of_another_form_is_bad_input_and_no_crash(tmp_path: Path, wrong: dict[str, Any]) -> None:
    good, bad = write_two(tmp_path, a_report(), a_report(**wrong))
    for order in ((good, bad), (bad, good)):
        result = invoke("diff", *order)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert "b.json is not a report of csqtool verify --json" in result.stderr
