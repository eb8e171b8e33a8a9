from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from csqtool.errors import ConfigError, InputError
from csqtool.searching import journal, tensorboard
from csqtool.searching.journal import Journal
from csqtool.searching.run_directory import RunDirectory


class Events:
    """Stands in for TensorBoard's."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        self.folder, self.step = folder, first_step
        self.written: list[tuple[int, dict[str, Any]]] = []
        made.append(self)

    def add(self, entry: dict[str, Any]) -> None:
        self.written.append((self.step, entry))
        self.step += 1


made: list[Events] = []


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Events]:
    made.clear()
    monkeypatch.setattr(journal, "check_available", lambda: None)
    monkeypatch.setattr(journal, "Events", Events)
    return made


def test_entries_are_lines_of_the_log_in_their_order(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    one = Journal(directory, writes=True, tensorboard=False)
    for epoch in (1, 2):
        one.add({"stage": "search", "epoch": epoch, "of a method's own": [1]})
    assert [(e.stage, e.epoch) for e in directory.read_log()] == [("search", 1), ("search", 2)]
    assert not directory.tensorboard.exists()


def test_a_process_that_does_not_write_writes_nothing(tmp_path: Path, events: list[Events]) -> None:
    Journal(RunDirectory(tmp_path), writes=False, tensorboard=True).add({"stage": "search"})
    assert list(tmp_path.iterdir()) == []
    assert events == []


def test_events_go_on_where_the_log_of_an_interrupted_run_ended(tmp_path: Path, events: list[Events]) -> None:
    directory = RunDirectory(tmp_path)
    for name in ("a", "b"):
        Journal(directory, writes=True, tensorboard=False).add({"stage": name})
    resumed = Journal(directory, writes=True, tensorboard=True)
    assert events == []  # nothing is opened before there is something to write
    resumed.add({"stage": "c"})
    resumed.add({"stage": "d"})
    assert [event.folder for event in events] == [directory.tensorboard]
    assert events[0].written == [(2, {"stage": "c"}), (3, {"stage": "d"})]


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write .*log\.jsonl: No such file"):
        Journal(RunDirectory(tmp_path / "gone"), writes=True, tensorboard=False).add({})


def test_tensorboard_is_asked_for_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs TensorBoard"):
        Journal(RunDirectory(tmp_path), writes=True, tensorboard=True)
