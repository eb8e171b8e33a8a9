"""The verbs `search` and `finetune`: begin a run, resume it, finetune its result, and read a finished one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from csqtool import trust
from csqtool.data import DataSource, load_data
from csqtool.errors import ConfigError, FormatError, InputError, SearchInterrupted
from csqtool.files import temporary_folder, write_bytes
from csqtool.interruption import interruptible
from csqtool.model_source import ModelSource
from csqtool.processes import Processes, start_processes
from csqtool.progress import Progress, Silent
from csqtool.searching.checkpoint import load_checkpoint
from csqtool.searching.config import SearchConfig
from csqtool.searching.files_ahead import check_files_ahead
from csqtool.searching.records import BegunFrom, StartRecord, scheme_of
from csqtool.searching.result import SearchResult
from csqtool.searching.run_directory import RunDirectory
from csqtool.searching.session import Session
from csqtool.searching.start import Start


def begin(
    config: SearchConfig,
    run: Path | None = None,
    *,
    model: ModelSource | None = None,
    data: DataSource | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    begun_from: Callable[[], BegunFrom] | None = None,
    look_ahead: Callable[[], None] | None = None,
) -> SearchResult:
    """Search bit widths from the beginning.

    Args:
        config: the settings.
        run: the run directory; it must not hold a run, unless `overwrite` is True. None keeps none.
        model: builds the module; None takes the factory in the settings.
        data: training and test data; None loads the source in the settings.
        overwrite: remove an earlier run in the directory.
        progress: is informed of every step.
        begun_from: called after model and data are built. Its result is kept in the run directory, so that a pipeline
            can compare it later with the present inputs.
        look_ahead: called when the folder is known to be free, before anything is trained or removed.

    Raises:
        InputError: model, data, weights, budget or folder cannot be used, or training diverged.
        SearchInterrupted: Ctrl-C; the state is saved.
    """
    _check_profiled(config, run)
    processes = start_processes(config.device)
    with _directory(run) as directory:
        if processes.first:
            directory.check_free(overwrite=overwrite)
        if look_ahead is not None:
            look_ahead()
        # Everything is read before the old run is removed: the new one may start from its files.
        start = Start.of_settings(config)
        session = Session(config, directory, start, progress or Silent(), model=model, data=data)
        check_files_ahead(session.network, session.info())
        begun = None if begun_from is None else begun_from()
        with _alone(directory, processes):
            if processes.first:
                directory.clear()
                if begun is not None:
                    directory.write_begun_from(begun)
                if start.scheme is not None:
                    directory.write_start_scheme(start.scheme)
                directory.write_config(session.config)
            processes.wait()
            return _to_end(session, kept=run is not None)


def resume(
    run: Path,
    *,
    given: Mapping[str, Any] | None = None,
    model: ModelSource | None = None,
    data: DataSource | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Continue an interrupted search from its last checkpoint; a finished one is returned unchanged.

    Args:
        run: the run directory.
        given: settings that the search is expected to have.
        model: builds the module; None takes the factory in the settings.
        data: training and test data; None loads the source in the settings.
        progress: is informed of every step.

    Raises:
        InputError: `run` holds no search, or one with other settings.
        SearchInterrupted: Ctrl-C; the state is saved.
    """
    directory = RunDirectory(run)
    config = directory.read_config()
    named = dict(given or {})
    if config.model is None and "model" in named:  # it was begun with an object; a name may replace it
        model = ModelSource(named.pop("model"), named.pop("model_args", {}))
    if config.data is None and "data" in named:
        data = load_data(named.pop("data"), task=named.pop("task", config.task), near=directory.config)
    _check_given(directory, config, named)
    for name in ("model", "data"):
        if isinstance(spec := named.get(name), str) and ":" in spec:
            trust.remember(spec)
    if directory.is_finished:
        return load_finished(run, model=model, data=data)
    processes = start_processes(config.device)
    with _alone(directory, processes):
        session = _session(directory, config, progress, model=model, data=data)
        state = load_checkpoint(directory.checkpoints, session.progress.line)
        if state is None:  # it was stopped before its first checkpoint
            if processes.first:
                directory.log.unlink(missing_ok=True)
        else:
            session.load(state)
            if processes.first:
                directory.cut_log(state["log_bytes"])
        processes.wait()
        return _to_end(session, kept=True)


def train_on(
    run: Path | SearchResult,
    output: Path | None = None,
    *,
    model: ModelSource | None = None,
    data: DataSource | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    **changes: Any,
) -> SearchResult:
    """Finetune the weights of a finished search, with its scheme fixed, in a new run directory.

    Args:
        run: the finished search.
        output: the new run directory; None keeps none. With `overwrite` it may be that of `run`.
        model: builds the module; None takes the search's.
        data: training and test data; None takes the search's.
        overwrite: remove an earlier run in the directory.
        progress: is informed of every step.
        changes: settings that differ from the search's: ``epochs``, ``finetune_with``, learning rates and so on.

    Raises:
        InputError: `run` holds no finished search, or a setting or folder cannot be used.
        SearchInterrupted: Ctrl-C; the state is saved.
    """
    finished = run if isinstance(run, SearchResult) else load_finished(run, model=model, data=data)
    searched = finished.session
    processes = searched.processes
    config = searched.config.for_finetuning(changes)
    _check_profiled(config, output)
    searched.network.harden()
    weights = searched.network.plain_weights()
    record = StartRecord(run=str(finished.run or "a search that kept no run"), metric_float=finished.metric_float)
    float_weights = searched.float_weights()
    with _directory(output) as directory:
        if processes.first:
            directory.check_free(overwrite=overwrite)
        with _alone(directory, processes):
            if processes.first:
                directory.clear()
                directory.write_start(record, weights, finished.scheme)
                if float_weights is not None:
                    write_bytes(directory.float_weights, float_weights)
            processes.wait()
            session = _session(
                directory, config, progress, model=model or searched.model_source, data=data or searched.data
            )
            if processes.first:
                directory.write_config(session.config)
            return _to_end(session, kept=output is not None)


def load_finished(run: Path, *, model: ModelSource | None = None, data: DataSource | None = None) -> SearchResult:
    """Return a finished search, rebuilt from its run directory.

    Raises:
        InputError: there is no search, it is not finished, or model or data are missing.
        FormatError: its files are damaged, or do not belong together.
    """
    directory = RunDirectory(run)
    config, summary = directory.read_config(), directory.read_summary()
    session = _session(directory, config, None, model=model, data=data)
    state = load_checkpoint(directory.checkpoints, session.progress.line)
    if state is None:
        raise InputError(f"the checkpoint of the search in {directory} is missing")
    session.load(state)
    session.network.harden()
    scheme = directory.read_scheme()
    if scheme != scheme_of(session.method.integers()):
        raise FormatError(
            f"{directory}: {directory.scheme.name} and the last checkpoint are of different searches, or one of them "
            "is damaged; run the search again"
        )
    return SearchResult(summary, tuple(scheme), tuple(directory.read_log()), directory.path, session)


def _check_profiled(config: SearchConfig, run: Path | None) -> None:
    """Check that what a profile writes is kept.

    Raises:
        ConfigError: there is no run directory.
    """
    if config.profile and run is None:
        raise ConfigError("profile writes into the run directory: name one (run=, of finetune output=)")


def _session(
    directory: RunDirectory,
    config: SearchConfig,
    progress: Progress | None,
    *,
    model: ModelSource | None,
    data: DataSource | None,
) -> Session:
    """Return a session that continues the run in a directory."""
    start = Start.of_run(directory, config)
    return Session(config, directory, start, progress or Silent(), model=model, data=data, recorded=True)


def _to_end(session: Session, *, kept: bool) -> SearchResult:
    directory = session.directory
    with interruptible() as stop:
        try:
            summary = session.to_end(stop)
        except KeyboardInterrupt as error:
            raise SearchInterrupted(
                f"stopped within a step; continue from the last checkpoint with: csqtool search --resume {directory}"
            ) from error
    scheme = tuple(scheme_of(session.method.integers()))
    log = tuple(directory.read_log()) if session.processes.first or kept else ()
    if not kept:
        session.keep_float_weights()
    return SearchResult(summary, scheme, log, directory.path if kept else None, session)


@contextmanager
def _directory(run: Path | None) -> Iterator[RunDirectory]:
    """Yield the run directory; without one, a temporary directory that is removed at the end."""
    with nullcontext(run) if run is not None else temporary_folder() as path:
        yield RunDirectory(path)


@contextmanager
def _alone(directory: RunDirectory, processes: Processes) -> Iterator[None]:
    """Lock the run directory, in the first of several processes."""
    with directory.locked() if processes.first else nullcontext():
        yield


def _check_given(directory: RunDirectory, config: SearchConfig, given: Mapping[str, Any]) -> None:
    """Compare settings that are given on resuming with those of the search.

    Raises:
        ConfigError: one differs.
    """
    config.check_used(given)
    recorded = config.to_json()
    # What auto was resolved to is recorded, and does not change.
    changed = {k: v for k, v in given.items() if recorded[k] != v and (k, v) != ("amp", "auto")}
    if changed:
        listed = ", ".join(f"{key} {_shown(recorded[key])}, not {_shown(value)}" for key, value in changed.items())
        raise ConfigError(
            f"the search in {directory} was begun with {listed}: leave these out to continue it, "
            "or begin another search in another folder"
        )


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)
