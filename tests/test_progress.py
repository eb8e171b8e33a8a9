from __future__ import annotations

import pytest

from csqtool import progress
from csqtool.progress import PlainLines, Silent, Told, stderr_progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the time that the clock shows, as a list of one number."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_come_every_few_seconds_and_at_the_end_of_a_stage(clock: list[float]) -> None:
    lines: list[str] = []
    plain = PlainLines(lines.append, every_seconds=10)
    for done in range(1, 31):
        clock[0] += 1
        plain.step("search", done, 30, {"loss": 0.123456})
    assert lines == [
        "search 10/30 steps  1.0 steps/s  20 s left  loss 0.1235",
        "search 20/30 steps  1.0 steps/s  10 s left  loss 0.1235",
        "search 30/30 steps  1.0 steps/s  0 s left  loss 0.1235",
    ]


def test_a_stage_that_resumes_counts_only_the_steps_it_has_seen(clock: list[float]) -> None:
    lines: list[str] = []
    plain = PlainLines(lines.append, every_seconds=1)
    plain.step("search", 500, 1000, {})
    clock[0] += 10
    plain.step("search", 510, 1000, {})
    assert lines == ["search 510/1000 steps  1.0 steps/s  490 s left"]


def test_lines_are_written_at_once_and_steps_only_where_they_are_wanted() -> None:
    lines: list[str] = []
    for told in (PlainLines(lines.append), Told(lines.append), Silent()):
        told.step("search", 1, 2, {})
        told.line("scheme fixed")
    assert lines == ["scheme fixed", "scheme fixed"]


def test_without_a_terminal_progress_is_plain_printable_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with stderr_progress() as shown:
        shown.line("a\x1bb")
        shown.step("x", 1, 1, {})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0] == "a\\x1bb"
    assert captured.err.splitlines()[1].startswith("x 1/1 steps")


def test_on_a_terminal_progress_is_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with stderr_progress() as shown:
        shown.step("search", 1, 2, {"loss": 1.0})
        shown.line("[bold]said\x1b")
        shown.step("search", 2, 2, {"loss": 0.5})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "[bold]said\\x1b" in captured.err
    assert "search" in captured.err
    assert "2/2" in captured.err
