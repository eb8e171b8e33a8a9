"""Records that a search writes while it runs: lines of its log, TensorBoard events, what an allocator found out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from csqtool.searching.records import AllocationRecord
from csqtool.searching.run_directory import RunDirectory
from csqtool.searching.tensorboard import Events, check_available


class Journal:
    """Writes log entries and what an allocator found out into a run directory.

    Args:
        directory: the run directory.
        writes: whether this process writes; of several processes only the first one does.
        tensorboard: also write events.

    Raises:
        ConfigError: TensorBoard is requested but not installed.
    """

    def __init__(self, directory: RunDirectory, *, writes: bool, tensorboard: bool) -> None:
        if tensorboard:
            check_available()
        self._directory = directory
        self._writes = writes
        self._tensorboard = tensorboard
        self._events: Events | None = None

    def add(self, entry: Mapping[str, Any]) -> None:
        """Write an entry.

        Raises:
            InputError: the files cannot be written.
        """
        if not self._writes:
            return
        self._directory.append_log(entry)
        if self._tensorboard:
            if self._events is None:
                first = len(self._directory.read_log()) - 1
                self._events = Events(self._directory.tensorboard, first_step=first)
            self._events.add(entry)

    def keep(self, record: AllocationRecord | None) -> None:
        """Write what an allocator found out, if it told anything.

        Raises:
            InputError: the file cannot be written.
        """
        if self._writes and record is not None:
            self._directory.write_allocation(record)
