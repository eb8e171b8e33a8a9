"""The stages of a pipeline: which of them hold from last time, and the records that tell."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from csqtool import documents
from csqtool.documents import Count
from csqtool.errors import InputError
from csqtool.files import sha256, write_json
from csqtool.fingerprints import Code, ImportedCode, is_current


class ExportFacts(msgspec.Struct, frozen=True):
    """``export-FORMAT.json`` of a pipeline: the size of the file, of the float32 model's, and the exporter's notes."""

    size_bytes: Count
    float32_bytes: Count
    notes: list[str]


class StageRecord(msgspec.Struct, frozen=True):
    """One stage in ``.stages.json``.

    Attributes:
        inputs: digest of its inputs.
        outputs: SHA-256 of each file that it wrote, by name.
        code: the user's code that had been imported when it ended.
        seconds: how long it took.
    """

    inputs: str
    outputs: dict[str, str]
    code: Code
    seconds: float = 0.0


class StagesFile(msgspec.Struct):
    """``.stages.json``.

    Attributes:
        place: the folder that the stages ran in; the records are only valid there.
        stages: the record of each stage.
    """

    place: str
    stages: dict[str, StageRecord]


class ToDoError(Exception):
    """A dry run came to a stage that would be run."""


class Stages:
    """Records the inputs and outputs of each stage.

    Args:
        folder: the folder of the pipeline file, which code is looked for from.
        output: the folder that the stages write into.
        imported: tells the user's code that has been imported.
        log: receives what became of each stage, by its name.
        tell: called with a line for each stage.
        dry_run: do nothing.
    """

    def __init__(
        self,
        folder: Path,
        output: Path,
        imported: ImportedCode,
        log: dict[str, str],
        tell: Callable[[str], None],
        *,
        dry_run: bool,
    ) -> None:
        self._dry_run = dry_run
        self._imported = imported
        self._folder = folder
        self._output = output
        self._path = output / ".stages.json"
        self._log = log
        self._tell = tell
        self._known: dict[str, StageRecord] = {}
        try:
            file = documents.read(StagesFile, self._path)
        except InputError:
            return  # without a readable record, all stages run again
        if file.place == self._place():
            self._known = file.stages

    def _place(self) -> str:
        """Return a text that identifies the output folder; copies of it have another one."""
        return f"{self._output.resolve()} ({self._output.stat().st_ino})"

    def run(
        self,
        name: str,
        inputs: str,
        outputs: Sequence[Path],
        work: Callable[[], object],
        *,
        code: Callable[[], Code] = dict,
        again: bool = False,
    ) -> StageRecord:
        """Do `work` unless its inputs and outputs are those of last time.

        Args:
            name: the stage.
            inputs: digest of its inputs.
            outputs: the files that it writes.
            work: writes them.
            code: called after `work`; returns code that the stage depends on besides the code this process imported.
            again: do it in any case.

        Raises:
            ToDoError: this is a dry run, and `work` would be done.
        """
        known = self._known.get(name)
        if known is not None and known.inputs == inputs and not again and self._still_holds(known, outputs):
            self._tell(f"{name}: unchanged")
            self._log[name] = "unchanged"
            return known
        if self._dry_run:
            self._log[name] = "to do"
            raise ToDoError
        self._tell(f"{name} …")
        began = time.monotonic()
        work()
        seconds = round(time.monotonic() - began, 1)
        made = {output.name: sha256(output) for output in outputs}
        record = StageRecord(inputs, made, {**code(), **self._imported()}, seconds)
        self._known[name] = record
        write_json(self._path, documents.plain(StagesFile(self._place(), self._known)))
        self._log[name] = "done"
        return record

    def took(self) -> dict[str, float]:
        """Return the seconds that each stage took when it last ran."""
        return {name: record.seconds for name, record in self._known.items() if record.seconds}

    def after_another(self, name: str) -> str:
        """Return what a dry run knows of a stage that comes after one that would be run."""
        return "perhaps" if name in self._known else "to do"

    def _still_holds(self, record: StageRecord, outputs: Sequence[Path]) -> bool:
        made = all(output.is_file() and record.outputs.get(output.name) == sha256(output) for output in outputs)
        return made and is_current(record.code, self._folder)
