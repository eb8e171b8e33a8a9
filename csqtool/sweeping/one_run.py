"""One run of a sweep, in a process of its own: ``python -m csqtool.sweeping.one_run``, with its task on stdin.

stdin stays open as long as the sweep lives. When it ends, also because the sweep was killed, the run saves its state
and stops.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec

from csqtool import documents
from csqtool.errors import CsqtoolError, SearchInterrupted
from csqtool.files import write_json
from csqtool.finalized_file import write_finalized
from csqtool.interruption import signals_interrupt
from csqtool.packing import pack
from csqtool.progress import Progress, stderr_progress
from csqtool.searching.config import SearchConfig
from csqtool.searching.result import SearchResult
from csqtool.searching.run_directory import RunDirectory
from csqtool.searching.runs import begin, resume
from csqtool.sweeping.plan import Settings, SweepDirectory
from csqtool.sweeping.result import Outcome

EXIT_REFUSED = 2
EXIT_INTERRUPTED = 130
LOCK_SECONDS = 60  # for which a run of a sweep that was killed may still save its state


class Task(msgspec.Struct, frozen=True):
    """What a process is to do: a run of the sweep in a folder."""

    folder: str
    name: str
    settings: Settings


def carry_out(
    directory: SweepDirectory,
    name: str,
    settings: Settings,
    progress: Progress,
    *,
    model: Any = None,
    data: Any = None,
) -> Outcome:
    """Begin or continue a run, and write its files and figures.

    Args:
        directory: the sweep's.
        name: of the run.
        settings: of its search.
        progress: is informed of every step.
        model: builds the module; None takes the factory in the settings.
        data: training and test data; None loads the source in the settings.

    Raises:
        InputError: the run cannot be done; `Outcome.problem` of the result says why.
        SearchInterrupted: the state is saved.
    """
    try:
        found = _searched(directory.run(name), settings, progress, model=model, data=data)
        quantized = found.finalize()
        metrics = quantized.info.metrics
        assert metrics is not None  # finalizing measures
        write_finalized(quantized, directory.model(name))
        packed = pack(quantized, directory.packed(name), inference=settings.get("size_profile") == "inference")
        outcome = Outcome(summary=found.summary, metric=metrics.finalized, bytes=packed.size_bytes)
    except SearchInterrupted:
        raise
    except CsqtoolError as error:
        write_json(directory.result(name), documents.plain(Outcome(problem=str(error))))
        raise
    write_json(directory.result(name), documents.plain(outcome))
    return outcome


def _searched(run: Path, settings: Settings, progress: Progress, *, model: Any, data: Any) -> SearchResult:
    directory = RunDirectory(run)
    directory.wait_until_free(LOCK_SECONDS)
    if directory.is_run:
        named = {key: settings[key] for key in ("model", "data") if settings.get(key) is not None}
        return resume(run, given=named, model=model, data=data, progress=progress)
    config = SearchConfig.from_json(settings, where=run.name)
    return begin(config, run, model=model, data=data, progress=progress)


def main() -> int:
    """Carry out the task on stdin, and return the exit code."""
    # Not buffered: a thread that waits in a buffered read would abort the interpreter's end.
    stdin = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115 - it is read as long as the process lives
    signals_interrupt()
    task = msgspec.json.decode(stdin.readline(), type=Task)

    def stop_with_the_sweep() -> None:
        stdin.read(1)
        signal.raise_signal(signal.SIGTERM)

    threading.Thread(target=stop_with_the_sweep, daemon=True).start()
    try:
        with stderr_progress() as progress:
            carry_out(SweepDirectory(Path(task.folder)), task.name, task.settings, progress)
    except (SearchInterrupted, KeyboardInterrupt) as error:
        print(f"interrupted: {error}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except CsqtoolError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
