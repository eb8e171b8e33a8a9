"""The run directory of a search: its files and their contents, its lock, reading and writing."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock, Timeout

from csqtool import documents
from csqtool.errors import FormatError, InputError
from csqtool.files import append_line, locked, read_bytes, write_bytes, write_json
from csqtool.searching.config import SearchConfig
from csqtool.searching.records import AllocationRecord, BegunFrom, LogEntry, SchemeEntry, StartRecord, Summary


class RunDirectory:
    """A folder that records one search; nothing is read or written before a method is called.

    ====================== =====================================================================================
    ``config.json``        all settings; if it exists, a search was begun here
    ``begun-from.json``    of a pipeline's search: the inputs that it began with
    ``log.jsonl``          a line an epoch, and one where a scheme was fixed
    ``checkpoints/``       the last state and the previous one
    ``float.safetensors``  the float model, if there is one
    ``start.json``         of a finetuning run: the run that it continues; with ``start.safetensors`` (weights) and
                           ``start-scheme.json`` (planes)
    ``allocation.json``    with an allocator that tells it: each layer's sensitivity, and what fewer planes cost
    ``losses.jsonl``       until the search is finished: losses measured on the way to a scheme
    ``scheme.json``        each layer's planes and bit width
    ``summary.json``       the result; written last, so if it exists, the search is finished
    ``tensorboard/``       events, with ``--tensorboard``
    ``profile/``           tables and traces, with ``--profile``
    ====================== =====================================================================================

    Args:
        path: the folder.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.begun_from = self.path / "begun-from.json"
        self.log = self.path / "log.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.last_checkpoint = self.checkpoints / "last.pt"
        self.float_weights = self.path / "float.safetensors"
        self.start = self.path / "start.json"
        self.start_weights = self.path / "start.safetensors"
        self.start_scheme = self.path / "start-scheme.json"
        self.allocation = self.path / "allocation.json"
        self.losses = self.path / "losses.jsonl"
        self.scheme = self.path / "scheme.json"
        self.summary = self.path / "summary.json"
        self.tensorboard = self.path / "tensorboard"
        self.profile = self.path / "profile"

    def __str__(self) -> str:
        return str(self.path)

    @property
    def is_run(self) -> bool:
        """Whether a search was begun here."""
        return self.config.is_file()

    @property
    def is_finished(self) -> bool:
        """Whether the search here is finished."""
        return self.summary.is_file()

    # --- locking -----------------------------------------------------------------------------------------

    def check_free(self, *, overwrite: bool) -> None:
        """Check that a new search may be recorded here.

        Raises:
            InputError: the path is a file, or holds a search and `overwrite` is False.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self} is a file; name a folder for the run")
        if self.is_run and not overwrite:
            raise InputError(
                f"{self} already holds a search; continue it with --resume {self}, replace it with --overwrite, "
                "or name another folder"
            )

    def locked(self) -> AbstractContextManager[None]:
        """Lock the folder until the block ends, or the process does.

        Raises:
            InputError: the folder cannot be created, or another process has locked it.
        """
        return locked(self.path, f"another process is at work in {self}; wait for it, or name another folder")

    def wait_until_free(self, seconds: float) -> None:
        """Wait for another process that still saves its state here; after `seconds` `locked` says what is wrong."""
        if self.path.is_dir():
            with suppress(Timeout), FileLock(self.path / ".lock", timeout=seconds):
                pass

    def clear(self) -> None:
        """Remove the files of an earlier search, summary and settings first, and create the folders.

        Raises:
            InputError: a file cannot be removed, or a folder not created.
        """
        leftover = self.path / "plots"  # written by versions before 0.1
        for old in (self.summary, self.config, self.begun_from, self.log, self.allocation, self.losses, self.scheme,
                    self.float_weights, self.start, self.start_weights, self.start_scheme, self.checkpoints,
                    self.tensorboard, self.profile, leftover):  # fmt: skip
            try:
                shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
            except OSError as error:
                raise InputError(f"cannot replace {old}: {error.strerror or error}") from error
        try:
            self.checkpoints.mkdir()
        except OSError as error:
            raise InputError(f"cannot write {self.checkpoints}: {error.strerror or error}") from error

    # --- reading -----------------------------------------------------------------------------------------

    def read_config(self) -> SearchConfig:
        """Return the settings.

        Raises:
            InputError: no search was begun here.
            FormatError: the file is not JSON.
            ConfigError: the settings are damaged.
        """
        if not self.is_run:
            raise InputError(f"{self} holds no search (no {self.config.name})")
        return SearchConfig.from_json(documents.read(dict[str, Any], self.config), where=str(self.config))

    def read_summary(self) -> Summary:
        """Return the result of the search.

        Raises:
            InputError: the folder holds no search, or one that is not finished.
            FormatError: the file is not a summary.
        """
        if not self.is_finished:
            if not self.is_run:
                raise InputError(f"{self} holds no search (no {self.config.name})")
            raise InputError(f"the search in {self} is not finished; continue with: csqtool search --resume {self}")
        return documents.read(Summary, self.summary)

    def read_scheme(self) -> list[SchemeEntry]:
        """Return each layer's planes.

        Raises:
            InputError: the file is missing.
            FormatError: the file is not a scheme.
        """
        return read_scheme(self.scheme)

    def read_allocation(self) -> AllocationRecord | None:
        """Return what the allocator found out about each layer; None if there is no record of it.

        Raises:
            FormatError: the file is damaged.
        """
        return documents.read(AllocationRecord, self.allocation) if self.allocation.is_file() else None

    def read_log(self) -> list[LogEntry]:
        """Return the log; it is empty before the first epoch ends.

        Raises:
            FormatError: the file is not a log.
        """
        return read_log(self.log) if self.log.is_file() else []

    def read_start(self) -> StartRecord | None:
        """Return the run that a finetuning run continues; None for any other run.

        Raises:
            FormatError: the file is damaged.
        """
        return documents.read(StartRecord, self.start) if self.start.is_file() else None

    def read_begun_from(self) -> BegunFrom | None:
        """Return the inputs that a pipeline's search began with; None if they are unknown."""
        try:
            return documents.read(BegunFrom, self.begun_from)
        except InputError:
            return None

    # --- writing -----------------------------------------------------------------------------------------

    def write_config(self, config: SearchConfig) -> None:
        """Write the settings; from then on the folder holds a search."""
        write_json(self.config, config.to_json())

    def write_begun_from(self, begun: BegunFrom) -> None:
        """Write the inputs that a pipeline begins this search with: after `clear` and before the settings."""
        write_json(self.begun_from, documents.plain(begun))

    def write_start_scheme(self, scheme: Sequence[SchemeEntry]) -> None:
        """Write the given planes, so that the run does not depend on the file that they come from."""
        write_json(self.start_scheme, documents.plain(scheme))

    def write_start(self, start: StartRecord, weights: bytes, scheme: Sequence[SchemeEntry]) -> None:
        """Write what a finetuning run starts from, so that it does not depend on the run that it continues."""
        write_bytes(self.start_weights, weights)
        self.write_start_scheme(scheme)
        write_json(self.start, documents.plain(start))

    def write_allocation(self, record: AllocationRecord) -> None:
        """Write what an allocator found out."""
        write_json(self.allocation, documents.plain(record))

    def append_log(self, entry: Mapping[str, Any]) -> None:
        """Add a line to the log; figures that are not finite become null, as JSON has no word for them.

        Raises:
            InputError: the file cannot be written.
        """
        written = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()}
        append_line(self.log, json.dumps(written, allow_nan=False))

    @property
    def log_bytes(self) -> int:
        """Length of the log, in bytes."""
        return self.log.stat().st_size if self.log.is_file() else 0

    def cut_log(self, size: int) -> None:
        """Cut the log to the `size` bytes it had at a checkpoint: what follows will be logged again."""
        if self.log_bytes > size:
            with open(self.log, "r+b") as log:
                log.truncate(size)

    def write_result(self, scheme: Sequence[SchemeEntry], summary: Summary) -> None:
        """Write the scheme, then the summary, whose presence marks the search as finished."""
        write_json(self.scheme, documents.plain(scheme))
        write_json(self.summary, documents.plain(summary))
        self.losses.unlink(missing_ok=True)


def read_scheme(path: Path) -> list[SchemeEntry]:
    """Return the layers in a ``scheme.json``.

    Raises:
        InputError: the file is missing.
        FormatError: it is not a scheme.
    """
    return documents.read(list[SchemeEntry], path)


def read_log(path: Path) -> list[LogEntry]:
    """Return the entries of a ``log.jsonl``; an incomplete last line is ignored.

    Raises:
        InputError: the file is missing.
        FormatError: it is not a log.
    """
    entries = []
    for number, line in enumerate(read_bytes(path).split(b"\n")[:-1], 1):
        try:
            msgspec.json.decode(line)  # keys that are not read are looked at, too
            entries.append(msgspec.json.decode(line, type=LogEntry))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            wrong = documents.explained(error, LogEntry)
            raise FormatError(f"{path} is not the log of a search: line {number}: {wrong}") from error
    return entries
