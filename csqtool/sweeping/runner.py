"""Runs a plan to its end: what is finished is kept, what was stopped goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from csqtool.errors import CheckFailed, CsqtoolError, InputError, SearchInterrupted
from csqtool.files import write_bytes
from csqtool.interruption import interruptible
from csqtool.progress import Progress
from csqtool.sweeping.float_training import FloatTraining
from csqtool.sweeping.launchers import LocalLauncher, RayLauncher
from csqtool.sweeping.one_run import carry_out
from csqtool.sweeping.plan import Plan, SweepDirectory
from csqtool.sweeping.result import SweepResult, SweepRow
from csqtool.sweeping.workers import Workers


def run_plan(
    plan: Plan,
    folder: Path,
    *,
    jobs: int | None,
    progress: Progress,
    cluster: str | None = None,
    model: Any = None,
    data: Any = None,
) -> SweepResult:
    """Carry out the runs of a plan, and return all runs of the folder.

    Args:
        plan: the runs.
        folder: of the sweep; runs of an earlier plan stay in it.
        jobs: how many run at a time, each in a process of its own; None takes the cores of the machine or cluster.
        progress: is informed of every run.
        cluster: the address of a Ray cluster that carries them out; None takes this machine.
        model: an object that builds the module; None takes the factory in the settings.
        data: training and test data that are objects; None loads the source in the settings.

    Raises:
        InputError: the folder cannot be used, or none of the runs could be done.
        CheckFailed: a run ended in an unexpected way; the same call tries it again.
        SearchInterrupted: Ctrl-C; the state is saved.
    """
    directory = SweepDirectory(folder)
    in_this_process = model is not None or data is not None
    if in_this_process and (jobs not in (None, 1) or cluster is not None):
        raise InputError("a model or data that are objects stay in this process: jobs must be 1, or give names")
    with directory.locked():
        directory.begin(plan)
        left = {name: settings for name, settings in plan.runs.items() if not _is_done(directory, name)}
        died: dict[str, str] = {}
        try:
            if in_this_process:
                floats = FloatTraining(directory, directory.read_plan().runs, left)
                for name in left:
                    _do_here(directory, name, floats.settings(name), progress, model=model, data=data)
            else:
                launcher = LocalLauncher(jobs) if cluster is None else RayLauncher(cluster, jobs)
                workers = Workers(directory, launcher, progress, died)
                with interruptible() as stop:
                    workers.run(left, stop)
        finally:
            found = read_sweep(folder)
            write_bytes(directory.table, found.table().encode())
    if died:
        name = next(iter(died))
        raise CheckFailed(f"{len(died)} of {len(plan.runs)} runs did not end: {name} {died[name]}, see "
                          f"{directory.log(name)}; the same command tries again")  # fmt: skip
    if not any(row.name in plan.runs for row in found.finished):
        row = next(row for row in found.rows if row.name in plan.runs)
        raise InputError(f"no run could be done; {row.name}: {row.outcome.problem if row.outcome else 'not finished'}")
    return found


def read_sweep(folder: Path) -> SweepResult:
    """Return the runs of a sweep, finished or not.

    Raises:
        InputError: no sweep was begun there.
        FormatError: a file is damaged.
    """
    directory = SweepDirectory(folder)
    plan = directory.read_plan()
    return SweepResult(folder, tuple(
        SweepRow(name, settings, directory.outcome(name), directory.model(name), directory.packed(name))
        for name, settings in plan.runs.items()
    ))  # fmt: skip


def _is_done(directory: SweepDirectory, name: str) -> bool:
    outcome = directory.outcome(name)
    return outcome is not None and outcome.summary is not None


def _do_here(directory: SweepDirectory, name: str, settings: Any, progress: Progress, *, model: Any, data: Any) -> None:
    try:
        outcome = carry_out(directory, name, settings, progress, model=model, data=data)
    except SearchInterrupted:
        raise
    except CsqtoolError as error:
        progress.line(f"{name}: not done: {error}")
    else:
        progress.line(f"{name}: {outcome.metric:.4f} in {outcome.bytes:,} B")
