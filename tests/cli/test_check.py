from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import csqtool
from csqtool.checking import NOT_COMPUTED, CheckReport, LeftInFloat
from tests.support.commands import DIGITS, invoke, ok

FACTORIES = """
from torch import nn
from tests.cli.test_check import Table

def table(): return Table()
def control():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(64, 10)
        def forward(self, x):
            x = x.flatten(1)
            return self.head(x) if float(x.sum()) > -1e9 else x[:, :10]
    return Net()
"""


class Table(nn.Module):
    """Most of the parameters are added to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Parameter(torch.zeros(160, 64)), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x.flatten(1)[:, None] + self.table).mean(1))


@pytest.mark.long
def test_a_network_is_looked_at_before_any_training_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = ok("check", DIGITS, "--data", "digits", "--act-bits", 8, "--exclude", "mix.*", "--json")
    found = json.loads(result.stdout)
    assert (found["passed"], found["outputs"], found["inputs"]) == (True, ["output"], ["input: float32 [1, 8, 8]"])
    assert [(left["name"], left["reason"]) for left in found["left"]] == [("mix.0.weight", "excluded")]
    assert 0.5 < found["coverage"] < 1
    assert found["integer_share"] >= 0.8
    assert 0 < found["csq_bytes"] < found["onnx_bytes"] < found["float32_bytes"]
    assert found["estimate"]["seconds"] == sum(found["estimate"]["stages"].values()) > 0
    text = ok("check", DIGITS, "--data", "digits").stdout
    assert text.splitlines()[-1].startswith("PASS")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_a_sliver_of_the_weights_is_warned_of_and_named(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(FACTORIES)
    result = ok("check", f"{tmp_path}/nets.py:table", "--data", "digits", "--act-bits", 8)
    assert "warning: only 6% of the parameters are quantized: a budget counts these alone" in result.stderr
    assert "no operation multiplies data by it or looks rows of it up" in result.stdout


@pytest.mark.parametrize(
    ("quantized", "unused", "expected"),
    [
        (70, 930, ["93% of the parameters belong to layers that the forward pass does not compute, encoder.weight"]),
        (70, 500, ["50% of the parameters belong to layers", "only 7% of the parameters are quantized"]),
        (900, 10, []),
    ],
)
def test_weights_that_are_never_computed_are_told_from_those_that_stay_in_float(
    quantized: int, unused: int, expected: list[str]
) -> None:
    left = [LeftInFloat("encoder.weight", unused, NOT_COMPUTED), LeftInFloat("table", 1000 - quantized - unused, "")]
    sizes: dict[str, Any] = dict.fromkeys((f.name for f in fields(CheckReport)), 0)
    report = CheckReport(**sizes | {"parameters": 1000, "quantized": quantized, "left": left})
    assert len(report.warnings) == len(expected)
    for warning, start in zip(report.warnings, expected, strict=True):
        assert warning.startswith(start)


def test_what_cannot_be_exported_is_refused_before_training_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(FACTORIES)
    result = invoke("check", f"{tmp_path}/nets.py:control", "--data", "digits")
    assert result.exit_code == 2
    assert "error: torch.onnx.export cannot capture the model" in result.stderr
    assert "nets.py" in result.stderr


@pytest.mark.long
def test_objects_are_looked_at_without_a_file() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    batches = [(torch.randn(20, 6), torch.randint(0, 3, (20,)))]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = csqtool.check(net, train=batches, test=batches, act_bits=8)
    assert found.passed
    assert (found.layers, found.quantized, found.warnings) == (2, 72, [])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("verb", ["search", pytest.param("run", marks=pytest.mark.long)])
def test_a_search_refuses_before_training_what_cannot_be_exported(verb: str, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(FACTORIES)
    (tmp_path / "pipeline.toml").write_text(
        'output = "run"\n[model]\nfactory = "nets.py:control"\n[data]\nsource = "digits"\n[search]\ntarget_bits = 3\n'
    )
    given = {"search": (f"{tmp_path}/nets.py:control", "--data", "digits", "--target-bits", 3, "-o", tmp_path / "run"),
             "run": (tmp_path / "pipeline.toml",)}  # fmt: skip
    result = invoke(verb, *given[verb], "--check")
    assert (result.exit_code, "step" in result.stderr) == (2, False)
    assert result.stderr.count("error: torch.onnx.export cannot capture the model") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_search_tells_what_is_covered_before_it_trains(tmp_path: Path) -> None:
    given = ("search", DIGITS, "--data", "digits", "--target-bits", 3, "--method", "lsq", "--epochs", 1)
    looked = ok(*given, "-o", tmp_path / "a", "--check")
    assert "8,032 of 8," in looked.stderr
    assert "parameters" in looked.stderr.split("epoch 1")[0]
    assert "training takes about " in looked.stderr.split("epoch 1")[0]
    plain = ok(*given, "-o", tmp_path / "b", "--no-check")
    assert "parameters" not in plain.stderr
    logs = [[json.loads(line) for line in (tmp_path / run / "log.jsonl").read_text().splitlines()] for run in "ab"]
    assert [entry["loss"] for entry in logs[0]] == [entry["loss"] for entry in logs[1]]
