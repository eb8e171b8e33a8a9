from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from csqtool.diffing import diff
from csqtool.finalized_file import read_finalized, write_finalized
from tests.conftest import Built, invoke, ok


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
