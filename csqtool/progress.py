"""Progress of long work: a bar on a terminal, plain lines elsewhere, always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from csqtool.text import printable


class Progress(Protocol):
    """Receives the progress of long work."""

    def step(self, stage: str, done: int, total: int, facts: dict[str, float]) -> None:
        """Report a finished step."""
        ...

    def line(self, text: str) -> None:
        """Report a line of text."""
        ...


class Silent:
    """Ignores all progress: the default of the Python functions."""

    def step(self, stage: str, done: int, total: int, facts: dict[str, float]) -> None:
        """Ignore the step."""

    def line(self, text: str) -> None:
        """Ignore the line."""


class Told(Silent):
    """Forwards lines, and ignores steps.

    Args:
        tell: called with each line.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def line(self, text: str) -> None:
        """Forward the line."""
        self._tell(text)


class PlainLines:
    """One line every few seconds: for logs."""

    def __init__(self, write: Callable[[str], None], *, every_seconds: float = 10.0) -> None:
        self._write = write
        self._every = every_seconds
        self._last = time.monotonic()
        self._start: dict[str, tuple[float, int]] = {}

    def step(self, stage: str, done: int, total: int, facts: dict[str, float]) -> None:
        """Write a line if enough time has passed since the last one, or if the stage ends."""
        now = time.monotonic()
        began, first = self._start.setdefault(stage, (now, done))
        if now - self._last < self._every and done < total:
            return
        self._last = now
        rate = (done - first) / max(now - began, 1e-9)
        eta = f"{(total - done) / rate:.0f} s left" if rate > 0 else "…"
        words = "  ".join([f"{stage} {done}/{total} steps", f"{rate:.1f} steps/s", eta, *format_facts(facts)])
        self._write(words)

    def line(self, text: str) -> None:
        """Write the line."""
        self._write(text)


def format_facts(facts: dict[str, float]) -> list[str]:
    """Return ``name value`` words."""
    return [f"{name} {value:.4g}" for name, value in facts.items()]


@contextmanager
def stderr_progress() -> Iterator[Progress]:
    """Yield a progress bar if stderr is a terminal, plain lines otherwise."""
    if not sys.stderr.isatty():
        yield PlainLines(lambda text: print(printable(text), file=sys.stderr, flush=True))
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    class _Bar:
        def __init__(self, bars: Bars) -> None:
            self._bars = bars
            self._tasks: dict[str, tuple[int, float, int]] = {}

        def step(self, stage: str, done: int, total: int, facts: dict[str, float]) -> None:
            if stage not in self._tasks:
                task = self._bars.add_task(stage, total=total, completed=done, facts="")
                self._tasks[stage] = (int(task), time.monotonic(), done)
            task_id, began, first = self._tasks[stage]
            rate = (done - first) / max(time.monotonic() - began, 1e-9)
            words = "  ".join([f"{rate:.1f} steps/s", *format_facts(facts)])
            self._bars.update(task_id, completed=done, facts=words)  # type: ignore[arg-type]

        def line(self, text: str) -> None:
            self._bars.console.print(printable(text), markup=False, highlight=False)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn("{task.fields[facts]}"))  # fmt: skip
    with Bars(*columns, console=Console(stderr=True)) as bars:
        yield _Bar(bars)
