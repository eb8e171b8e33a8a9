"""A search that is stopped while it measures, moved, or runs while the clock jumps."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import csqtool
from csqtool.errors import SearchInterrupted
from csqtool.finalized_file import to_bytes

PACKAGES = Path(__file__).parents[2]
CALENDAR = {"time", "time_ns", "localtime", "gmtime", "ctime", "strftime", "now", "utcnow", "today"}
SETTINGS: dict[str, Any] = {"target_bits": 3, "act_bits": 8, "batch_size": 32, "pretrain_epochs": 1, "epochs": 2,
                            "finetune_epochs": 1}  # fmt: skip
MEASUREMENTS = 8  # the float model twice, two epochs soft and hard, the last epoch and the result, at the least
BATCHES = 4


class Measured:
    """Test data of four batches, which send SIGTERM when the search reads its batch `at` within its stages."""

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.read = 0

    def __iter__(self) -> Iterator[Any]:
        x, y = samples()
        for start in range(0, 64, 16):
            if callable(signal.getsignal(signal.SIGTERM)):
                if self.read == self.at:
                    os.kill(os.getpid(), signal.SIGTERM)
                self.read += 1
            yield x[start : start + 16], y[start : start + 16]


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(64, 1, 6, 6, generator=draw), torch.randint(0, 3, (64,), generator=draw)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def searched(run: Path, test: Measured, **more: Any) -> bytes:
    found = csqtool.search(net(), train=samples(), test=test, run=run, **SETTINGS, **more)
    return to_bytes(found.finalize())


@pytest.mark.long
def test_a_signal_while_the_search_measures_is_heeded_at_the_next_batch_and_loses_no_epoch(tmp_path: Path) -> None:
    undisturbed = Measured()
    whole = searched(tmp_path / "whole", undisturbed)
    log = (tmp_path / "whole" / "log.jsonl").read_text()
    assert undisturbed.read >= MEASUREMENTS * BATCHES
    for at in range(0, undisturbed.read - 1, 5):  # with the last batch all is measured
        run, test = tmp_path / str(at), Measured(at)
        with pytest.raises(SearchInterrupted, match="state saved"):
            searched(run, test)
        assert test.read <= at + 2
        resumed = csqtool.search(net(), train=samples(), test=Measured(), resume=run)
        assert to_bytes(resumed.finalize()) == whole
        assert (run / "log.jsonl").read_text() == log


def test_an_epoch_that_was_trained_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from csqtool.searching.loop import StageTraining

    test = Measured(1)  # within the measurement that follows the only epoch of float training
    with pytest.raises(SearchInterrupted):
        searched(tmp_path / "run", test)
    trained: list[str] = []
    step = StageTraining._step

    def counted(self: StageTraining, *arguments: Any) -> float:
        trained.append(self.name)
        return step(self, *arguments)

    monkeypatch.setattr(StageTraining, "_step", counted)
    csqtool.search(net(), train=samples(), test=Measured(), resume=tmp_path / "run")
    assert "float" not in trained
    assert "search" in trained


def test_a_run_that_was_moved_while_it_was_stopped_goes_on_to_the_same_model(tmp_path: Path) -> None:
    whole = searched(tmp_path / "whole", Measured())
    with pytest.raises(SearchInterrupted):
        searched(tmp_path / "run", Measured(3 * BATCHES + 1))
    shutil.move(tmp_path / "run", tmp_path / "elsewhere" / "moved")
    resumed = csqtool.search(net(), train=samples(), test=Measured(), resume=tmp_path / "elsewhere" / "moved")
    assert to_bytes(resumed.finalize()) == whole


def test_a_clock_that_jumps_changes_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = searched(tmp_path / "whole", Measured())
    jumps = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: 1e9 * (-1) ** next(jumps))
    assert searched(tmp_path / "jumping", Measured()) == whole


def test_no_module_reads_the_calendar_clock() -> None:
    found = [
        f"{path.relative_to(PACKAGES)}:{node.lineno}"
        for package in ("csqtool", "exporters")
        for path in (PACKAGES / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in CALENDAR
        and isinstance(node.value, ast.Name)
        and node.value.id in ("time", "datetime", "date")
    ]
    assert found == []
