"""Carries out the runs of a sweep, several at a time, each in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from csqtool.errors import SearchInterrupted
from csqtool.progress import Progress
from csqtool.sweeping.float_training import FloatTraining
from csqtool.sweeping.launchers import Launcher, Running
from csqtool.sweeping.one_run import EXIT_REFUSED, Task
from csqtool.sweeping.plan import Settings, SweepDirectory

POLL_SECONDS = 0.2


@dataclass
class Workers:
    """The processes of a sweep.

    Args:
        directory: the sweep's.
        launcher: starts them.
        progress: is told of every run that ends.
        died: the runs whose process ended in an unexpected way, with what is known of it.
    """

    directory: SweepDirectory
    launcher: Launcher
    progress: Progress
    died: dict[str, str] = field(default_factory=dict)
    _running: dict[str, Running] = field(default_factory=dict)

    def run(self, runs: Mapping[str, Settings], stop: Callable[[], bool]) -> None:
        """Carry out all runs, in their order.

        Float training is done once, see `FloatTraining`: the other runs that ask for it wait for the first of them.

        Args:
            runs: the settings of each.
            stop: called again and again; True stops the runs, which save their state.

        Raises:
            SearchInterrupted: `stop` returned True.
            InputError: a process cannot be started.
        """
        waiting, total = list(runs), len(runs)
        floats = FloatTraining(self.directory, self.directory.read_plan().runs, runs)
        try:
            while waiting or self._running:
                if stop():
                    raise SearchInterrupted("stopped; state saved, continue with the same command")
                for name in list(waiting):
                    if len(self._running) < self.launcher.jobs and self._may_start(name, floats):
                        waiting.remove(name)
                        self._start(name, floats.settings(name))
                time.sleep(POLL_SECONDS)
                if self._ended():
                    done = total - len(waiting) - len(self._running)
                    self.progress.step("runs", done, total, {"running": len(self._running)})
        finally:
            self._stop_all()

    def _may_start(self, name: str, floats: FloatTraining) -> bool:
        leader = floats.leader(name)
        if leader in (None, name) or floats.weights(leader) is not None:
            return True
        ended = leader in self.died or self.directory.outcome(leader) is not None
        return ended and leader not in self._running

    def _start(self, name: str, settings: Settings) -> None:
        self.directory.result(name).unlink(missing_ok=True)
        log = self.directory.log(name)
        task = msgspec.json.encode(Task(str(self.directory.path), name, settings)) + b"\n"
        self._running[name] = self.launcher.start(task, log)
        self.progress.line(f"{name}: started, log in {log}")

    def _ended(self) -> Sequence[str]:
        """Return the runs that have ended since the last call, after telling how."""
        codes = {name: code for name, run in self._running.items() if (code := run.poll()) is not None}
        for name, code in codes.items():
            del self._running[name]
            outcome = self.directory.outcome(name)
            if code == 0 and outcome is not None and outcome.summary is not None:
                before = outcome.summary.metric_float
                change = "" if before is None else f"float {before:.4f} → "
                self.progress.line(
                    f"{name}: {outcome.summary.metric_name} {change}{outcome.metric:.4f} in {outcome.bytes:,} B"
                )
            elif code == EXIT_REFUSED and outcome is not None:
                self.progress.line(f"{name}: not done: {outcome.problem}")
            else:
                self.died[name] = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
                self.progress.line(f"{name}: {self.died[name]}; see {self.directory.log(name)}")
        return list(codes)

    def _stop_all(self) -> None:
        """Let the runs save their state, and wait for them."""
        for run in self._running.values():
            run.ask_to_stop()
        for run in self._running.values():
            run.wait()
        self._running.clear()
