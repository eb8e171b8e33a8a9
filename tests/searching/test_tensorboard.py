from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.support.commands import DIGITS, invoke, ok

SEARCH = ["search", DIGITS, "--data", "digits", "--target-bits", 3, "--epochs", 1, "--finetune-epochs", 0,
          "--batch-size", 256, "--tensorboard"]  # fmt: skip


def test_events_hold_the_scalars_of_the_log(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    ok(*SEARCH, "-o", tmp_path / "run")
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [(e.step, e.value) for e in events.Scalars("loss")]
    assert losses == [(i, pytest.approx(entry["loss"])) for i, entry in enumerate(entries) if "loss" in entry]
    assert "precision/stem.0.weight" in events.Tags()["scalars"]


def test_without_tensorboard_the_extra_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "tensorboard" else found(name, *a)
    )
    result = invoke(*SEARCH, "-o", tmp_path / "run")
    assert result.exit_code == 2
    assert "pip install 'csqtool[tensorboard]'" in result.stderr
    assert not (tmp_path / "run").exists()
