"""The verbs `search` and `finetune`, resuming, and the run directory that records a search."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csqtool.documents import plain
from csqtool.errors import ConfigError, InputError
from csqtool.files import read_json, write_bytes, write_json
from csqtool.processes import Processes, start_processes
from csqtool.progress import Progress, Silent
from csqtool.searching.checkpoint import load_checkpoint
from csqtool.searching.config import SearchConfig
from csqtool.searching.records import BegunFrom
from csqtool.searching.run_directory import RunDirectory
from csqtool.searching.session import CHECKPOINTS, FINETUNE_METHODS, Session

RUN_FILES = ("config.json", "begun-from.json", "log.jsonl", "scheme.json", "summary.json", "float.safetensors",
             "start.json", "start-scheme.json", "start.safetensors", "checkpoints", "plots", "tensorboard")  # fmt: skip
SAME_SIGNAL_SECONDS = 2.0


@dataclass
class FinishedSearch:
    """A finished search as `finalize` needs it: its session, with hard weights, and its summary."""

    session: Session
    summary: dict[str, Any]


def search(
    config: SearchConfig,
    output: Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    begun_from: Callable[[], BegunFrom] | None = None,
) -> dict[str, Any]:
    """Search bit widths and write a run directory.

    Args:
        config: the settings.
        output: the run directory; must not hold a run already, unless `overwrite`.
        overwrite: remove a run that is there.
        progress: told about every step.
        begun_from: called when model and data are built; what it returns is kept in the run directory, so that a
            pipeline knows later whether the search was begun from what it would begin it from.

    Returns:
        The summary, as in ``summary.json``.

    Raises:
        InputError: model, data, weights, budget or folder cannot be used, or training diverged.
        SearchInterrupted: Ctrl-C; the state is saved.
    """
    processes = start_processes(config.device)
    if processes.first:
        _check_folder(output, overwrite=overwrite)
    session = Session(config, output, progress or Silent())
    begun = None if begun_from is None else begun_from()
    with _locked(output, processes):
        if processes.first:
            _prepare_folder(output)
            if begun is not None:
                RunDirectory(output).write_begun_from(begun)
            write_json(output / "config.json", session.config.to_json())
        processes.wait()
        return _to_end(session)


def resume_search(
    output: Path, *, given: Mapping[str, Any] | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Go on with an interrupted search from its last checkpoint; a finished one returns its summary.

    Args:
        output: the run directory.
        given: settings that the search is expected to have.
        progress: told about every step.

    Raises:
        InputError: `output` holds no search, or one with other settings.
        SearchInterrupted: Ctrl-C; the state is saved.
    """
    config = _config(output)
    recorded = config.to_json()
    # What auto meant when the search began is recorded, and stays as it is.
    changed = {k: v for k, v in (given or {}).items() if recorded[k] != v and (k, v) != ("amp", "auto")}
    if changed:
        listed = ", ".join(f"{key} {_shown(recorded[key])}, not {_shown(value)}" for key, value in changed.items())
        raise ConfigError(
            f"the search in {output} was begun with {listed}: leave these out to go on with it, "
            "or begin another in a folder of its own"
        )
    if (output / "summary.json").is_file():
        summary: dict[str, Any] = plain(RunDirectory(output).read_summary())
        return summary
    processes = start_processes(config.device)
    with _locked(output, processes):
        session = Session(config, output, progress or Silent())
        state = load_checkpoint(output / CHECKPOINTS, session.progress.line)
        if state is None:  # it died before the first one
            if processes.first:
                (output / "log.jsonl").unlink(missing_ok=True)
        else:
            session.load(state)
            if processes.first:
                session.forget_log_behind(state)
        processes.wait()
        return _to_end(session)


def finetune(
    run: Path, output: Path, *, overwrite: bool = False, progress: Progress | None = None, **changes: Any
) -> dict[str, Any]:
    """Train the weights of a finished search on, with its scheme fixed, into a run directory of its own.

    Args:
        run: the finished search.
        output: the new run directory.
        overwrite: remove a run that is there.
        progress: told about every step.
        changes: settings that differ from the search's: ``epochs``, ``finetune_with``, learning rates and so on.

    Returns:
        The summary, as in ``summary.json``.

    Raises:
        InputError: `run` holds no finished search, or a setting or folder cannot be used.
        SearchInterrupted: Ctrl-C; the state is saved.
    """
    finished = load_finished(run)
    processes = finished.session.processes
    if processes.first:
        _check_folder(output, overwrite=overwrite)
    before = finished.session.config
    settings = {
        **before.to_json(),
        "epochs": before.finetune_epochs or before.epochs,
        **changes,
        "weights": str(output / "start.safetensors"),
        "scheme": str(output / "start-scheme.json"),
        "pretrain_epochs": 0,
        "finetune_epochs": 0,
    }
    settings["method"] = FINETUNE_METHODS.get(settings["finetune_with"], "lsq")
    config = SearchConfig.from_json(settings, where="finetune")
    with _locked(output, processes):
        if processes.first:
            _prepare_folder(output)
            write_bytes(output / "start.safetensors", finished.session.plain_weights())
            write_json(output / "start-scheme.json", read_json(run / "scheme.json"))
            write_json(output / "start.json", {"run": str(run), "metric_float": finished.summary["metric_float"]})
            if (run / "float.safetensors").is_file():
                shutil.copyfile(run / "float.safetensors", output / "float.safetensors")
        processes.wait()
        session = Session(config, output, progress or Silent())
        if processes.first:
            write_json(output / "config.json", session.config.to_json())
        return _to_end(session)


def load_finished(output: Path) -> FinishedSearch:
    """Return a finished search, rebuilt from its run directory.

    Raises:
        InputError: there is no search, or it is not finished.
    """
    config = _config(output)
    if not (output / "summary.json").is_file():
        raise InputError(f"the search in {output} is not finished; go on with: csqtool search --resume {output}")
    summary = plain(RunDirectory(output).read_summary())
    session = Session(config, output, Silent())
    state = load_checkpoint(output / CHECKPOINTS, session.progress.line)
    if state is None:
        raise InputError(f"the checkpoint of the search in {output} is missing")
    session.load(state)
    session.harden()
    return FinishedSearch(session, summary)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)


def _config(output: Path) -> SearchConfig:
    path = output / "config.json"
    if not path.is_file():
        raise InputError(f"{output} holds no search (no config.json)")
    return SearchConfig.from_json(read_json(path), where=str(path))


def _to_end(session: Session) -> dict[str, Any]:
    with _interruptible() as stop:
        return session.to_end(stop)


def _check_folder(output: Path, *, overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; name a folder for the run")
    if (output / "config.json").exists() and not overwrite:
        raise InputError(
            f"{output} already holds a search; go on with --resume {output}, replace it with --overwrite, "
            "or name another folder"
        )


@contextmanager
def _locked(output: Path, processes: Processes) -> Iterator[None]:
    """Keep other runs out of a run directory; the lock goes with the first process, however that ends.

    Raises:
        InputError: the folder cannot be made, or another process works in it.
    """
    import fcntl

    if not processes.first:
        yield
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = os.open(output / ".lock", os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror or error}") from error
    with os.fdopen(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"another process is at work in {output}; wait for it, or name another folder") from error
        yield


def _prepare_folder(output: Path) -> None:
    """Remove the files of a run before."""
    for name in RUN_FILES:
        old = output / name
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    (output / CHECKPOINTS).mkdir()


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether to stop: after Ctrl-C, or SIGTERM as schedulers send it.

    A second signal interrupts at once, but not within two seconds: launchers of several processes pass on what
    the terminal has sent already.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    first = 0.0

    def handle(number: int, frame: Any) -> None:
        nonlocal first
        if pressed.is_set() and time.monotonic() - first > SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt
        first = first or time.monotonic()
        pressed.set()

    for number in before:
        signal.signal(number, handle)
    try:
        yield pressed.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
