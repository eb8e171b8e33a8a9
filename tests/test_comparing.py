"""Comparisons: one budget, several methods, each down to verified files, cached."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import csqtool
from csqtool.comparing import Comparison, Shipped, check_passed, kind_and_data
from csqtool.errors import CheckFailed, ConfigError
from csqtool.sweeping.plan import compose
from tests.support.commands import DIGITS, ok

SETTINGS: dict[str, Any] = {"target_bits": 3, "epochs": 0, "finetune_epochs": 0, "batch_size": 16, "device": "cpu"}


def small() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    return net, (torch.randn(32, 6), torch.arange(32) % 3)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    net, data = small()
    folder = tmp_path_factory.mktemp("comparison")
    return csqtool.compare(net, folder, methods=["measured", "hawq-v3"], train=data, test=data, **SETTINGS)


@pytest.mark.long
def test_every_method_ends_in_files_that_a_verification_of_their_own_confirms(compared: Comparison) -> None:
    net, data = small()
    assert compared.passed
    for row in compared.sweep.rows:
        onnx = row.model.with_suffix(".onnx")
        assert compared.shipped[row.name].onnx_bytes == onnx.stat().st_size
        assert csqtool.verify(onnx, row.model, model=net, data=data).passed
        assert csqtool.verify(row.packed, row.model, model=net, data=data).passed


@pytest.mark.long
def test_the_table_names_what_each_method_is_and_needs(compared: Comparison) -> None:
    lines = (compared.sweep.folder / "comparison.md").read_text().splitlines()
    assert lines[0].startswith("| method | kind | data needed | metric |")
    assert [line.split(" | ")[:3] for line in lines[2:]] == [
        ["| measured", "allocator", "labelled"], ["| hawq-v3", "allocator", "labelled"]]  # fmt: skip
    assert all(line.endswith("| yes |") for line in lines[2:])


@pytest.mark.long
def test_what_was_verified_is_not_verified_again_unless_the_model_has_changed(compared: Comparison) -> None:
    net, data = small()
    folder, first = compared.sweep.folder, compared.sweep.rows[0]
    records = {path.stem: path for path in (folder / "verified").glob("*.json")}
    before = {name: path.stat().st_mtime_ns for name, path in records.items()}
    record = json.loads(records[first.name].read_text())
    records[first.name].write_text(json.dumps({**record, "model": "of another one"}))
    again = csqtool.compare(net, folder, methods=["measured", "hawq-v3"], train=data, test=data, **SETTINGS)
    assert again.shipped == compared.shipped
    changed = {name for name, path in records.items() if path.stat().st_mtime_ns != before[name]}
    assert changed == {first.name}


@pytest.mark.long
def test_a_file_that_fails_is_named_and_fails_the_comparison(compared: Comparison) -> None:
    name = compared.sweep.rows[0].name
    broken = Comparison(compared.sweep, {**compared.shipped, name: Shipped("x", 1, [f"{name}.csq"])})
    assert not broken.passed
    assert f"failed: {name}.csq" in broken.table()
    with pytest.raises(CheckFailed, match="1 files do not compute the same as PyTorch"):
        check_passed(broken)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"method": "csq", "epochs": 1, "finetune_epochs": 1}, ("both", "labelled")),
        ({"method": "lsq", "epochs": 1}, ("trainer", "labelled")),
        ({"method": "hawq", "epochs": 0, "finetune_with": "lsq"}, ("allocator", "labelled")),
        ({"method": "zeroq", "epochs": 0}, ("allocator", "none")),
        ({"method": "zeroq", "epochs": 2}, ("allocator, lsq", "none; training: labelled")),
        ({"method": "zeroq", "epochs": 2, "finetune_with": "zaq"}, ("allocator, zaq", "none")),
        ({"method": "hawq", "epochs": 2, "finetune_with": "csq"}, ("allocator, csq", "labelled")),
    ],
)
def test_kind_and_data_follow_from_the_settings(settings: dict[str, Any], found: tuple[str, str]) -> None:
    assert kind_and_data(settings) == found


@pytest.mark.parametrize("budgets", [{}, {"target_bits": 2, "target_size": "9KB"}])
def test_a_comparison_has_one_budget(budgets: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="compare needs one budget"):
        csqtool.compare(small()[0], tmp_path, data="digits", **budgets)


def test_an_allocators_scheme_may_be_trained_with_each_finetuning_and_as_long_as_others_search() -> None:
    plan = compose({"model": DIGITS, "data": "digits", "epochs": 3, "finetune_epochs": 7},
                   methods=["csq", "hawq-v3+csq"], target_bits=[2])  # fmt: skip
    run = plan.runs["hawq-v3+csq-2bits-seed0"]
    assert (run["epochs"], run["finetune_with"]) == (10, "csq")
    with pytest.raises(ConfigError, match="'lsq\\+csq' is no method of a sweep"):
        compose({"model": DIGITS, "data": "digits"}, methods=["lsq+csq"], target_bits=[2])


@pytest.mark.slow
def test_the_command_compares_in_processes_and_prints_the_table(tmp_path: Path) -> None:
    done = ok("compare", DIGITS, "--data", "digits", "--target-bits", 3, "--methods", "csq,measured", "--epochs", 0.3,
              "--finetune-epochs", 0.2, "--pretrain-epochs", 1, "--jobs", 1, "-o", tmp_path / "c")  # fmt: skip
    assert "| csq | both | labelled |" in done.stdout
    assert "| measured | allocator, lsq | labelled |" in done.stdout
    assert (tmp_path / "c" / "front.svg").is_file()
