"""Whole files through every level: exports and packages that hold another graph than their finalized model's."""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from csqtool import VerifyReport, forks, verify
from csqtool.csq import pack
from csqtool.verifying import expected_graph
from tests.support.fooling_edits import batch_trigger, branch_trigger
from tests.support.structural import Branches, Edit, Proto, Sample, at_the_end, first, make, sample

pytestmark = pytest.mark.usefixtures("one_capture")


@pytest.fixture(scope="module")
def branches() -> Sample:
    torch.manual_seed(0)
    return sample(Branches(), (1, 8, 8), act_bits=None)


@pytest.fixture(scope="module")
def data(branches: Sample, tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(1)
    inputs = torch.randn(80, 1, 8, 8)
    labels = branches.module(inputs).argmax(-1)
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, x_train=inputs, y_train=labels, x_test=inputs, y_test=labels)
    return f"npz:{path}"


def verified(made: Sample, path: Path, data: str) -> VerifyReport:
    return verify(path, made.model, model=copy.deepcopy(made.module), data=data, task="classification")


def negated(proto: Proto) -> None:
    at_the_end(proto, make("Neg", ["honest"], ["output"]))


def test_an_untouched_file_reaches_the_structure_level(branches: Sample, data: str, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(branches.content)
    report = verified(branches, tmp_path / "model.onnx", data)
    assert report.passed, report.failures
    assert [check.name for check in report.checks if check.level == "structure"] == ["nothing left over", "dataflow"]


@pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux alone")
def test_a_network_captured_in_a_fork_gives_the_same_verdicts(
    branches: Sample, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = branches.proto()
    batch_trigger(proto)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    here = verified(branches, tmp_path / "model.onnx", data)
    monkeypatch.setattr(forks, "_allowed", True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    captured, parent = expected_graph.captured, os.getpid()

    def only_in_a_fork(*given: Any) -> onnx.ModelProto:
        assert os.getpid() != parent
        return captured(*given)

    monkeypatch.setattr(expected_graph, "captured", only_in_a_fork)
    assert verified(branches, tmp_path / "model.onnx", data).to_json() == here.to_json()
    assert not here.passed


def test_control_flow_fails_by_structure_and_is_not_run(branches: Sample, data: str, tmp_path: Path) -> None:
    proto = branches.proto()
    branch_trigger(proto)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    report = verified(branches, tmp_path / "model.onnx", data)
    assert {"structure"} <= {check.level for check in report.failures}
    assert ("outputs", "nothing was compared at this level") in {(c.level, c.detail) for c in report.failures}


def test_the_graph_in_a_package_passes_all_levels(branches: Sample, data: str, tmp_path: Path) -> None:
    (tmp_path / "model.csq").write_bytes(pack(branches.model, onnx=branches.content))
    report = verified(branches, tmp_path / "model.csq", data)
    assert report.passed, report.failures
    inside = {check.level for check in report.checks if check.name.startswith("graph: ")}
    assert inside == {"integrity", "structure", "weights", "layers", "outputs", "task"}


def test_a_package_without_a_graph_says_so(branches: Sample, data: str, tmp_path: Path) -> None:
    (tmp_path / "model.csq").write_bytes(pack(branches.model))
    report = verified(branches, tmp_path / "model.csq", data)
    assert report.passed, report.failures
    (check,) = [check for check in report.checks if check.level == "structure"]
    assert "holds none" in check.detail


def other_activation(proto: Proto) -> None:
    first(proto, "HardSwish").op_type = "Mish"


@pytest.mark.parametrize(
    ("edit", "levels"),
    [
        (negated, {"structure", "outputs", "task"}),
        (batch_trigger, {"structure", "outputs"}),
        (branch_trigger, {"structure", "outputs"}),
        (other_activation, {"structure", "layers", "outputs"}),
    ],
)
def test_a_package_with_another_graph_fails(
    branches: Sample, data: str, tmp_path: Path, edit: Edit, levels: set[str]
) -> None:
    proto = branches.proto()
    edit(proto)
    (tmp_path / "model.csq").write_bytes(pack(branches.model, onnx=proto.SerializeToString()))
    report = verified(branches, tmp_path / "model.csq", data)
    assert not report.passed
    assert levels <= {check.level for check in report.failures if check.name.startswith("graph: ")}
    assert all(check.name.startswith("graph: ") for check in report.failures)


@pytest.mark.parametrize("edit", [negated, batch_trigger])
def test_an_allowed_part_does_not_hide_wrong_outputs(branches: Sample, data: str, tmp_path: Path, edit: Edit) -> None:
    proto = branches.proto()
    edit(proto)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    report = verify(
        tmp_path / "model.onnx", branches.model, model=copy.deepcopy(branches.module), data=data,
        task="classification", allow_unaccounted=["output"],
    )  # fmt: skip
    assert all(check.passed for check in report.checks if check.level == "structure")
    assert "outputs" in {check.level for check in report.failures}
