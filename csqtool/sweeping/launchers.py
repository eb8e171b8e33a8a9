"""Where the runs of a sweep are carried out: processes of this machine, or a cluster through Ray.

Each run is a process that `csqtool.sweeping.one_run` describes. On a cluster all machines see the same folder, data and
model file under the same paths.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

from csqtool.errors import ConfigError, InputError

COMMAND = [sys.executable, "-m", "csqtool.sweeping.one_run"]
LOST = -signal.SIGKILL  # the exit code of a run whose machine is lost


class Running(Protocol):
    """A run that has been started."""

    def poll(self) -> int | None:
        """Return its exit code; None while it runs."""
        ...

    def ask_to_stop(self) -> None:
        """Let it save its state and end."""
        ...

    def wait(self) -> None:
        """Wait until it has ended."""
        ...


class Launcher(Protocol):
    """Starts runs.

    Attributes:
        jobs: how many may run at a time.
    """

    jobs: int

    def start(self, task: bytes, log: Path) -> Running:
        """Start a run.

        Args:
            task: a line for the process's stdin.
            log: what the process prints is added to this file.

        Raises:
            InputError: it cannot be started.
        """
        ...


class LocalRun:
    """A process of this machine; it ends when this process does.

    Args:
        task: a line for its stdin.
        log: what it prints is added to this file.
        threads: for PyTorch, unless the environment says otherwise.
    """

    def __init__(self, task: bytes, log: Path, threads: int) -> None:
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as output:
            self._process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=output, stderr=output,
                                             env=environment, start_new_session=True)  # fmt: skip
        assert self._process.stdin is not None
        self._stdin = self._process.stdin
        self._stdin.write(task)
        self._stdin.flush()

    def poll(self) -> int | None:
        """Return its exit code; None while it runs."""
        code = self._process.poll()
        if code is not None:
            self._stdin.close()
        return code

    def ask_to_stop(self) -> None:
        """Send SIGTERM."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Wait until it has ended."""
        self._process.wait()
        self._stdin.close()


class LocalLauncher:
    """Starts runs as processes of this machine.

    Args:
        jobs: how many may run at a time; None takes the machine's cores.
    """

    def __init__(self, jobs: int | None) -> None:
        cores = os.cpu_count() or 1
        self.jobs = jobs or cores
        self._threads = max(1, cores // self.jobs)

    def start(self, task: bytes, log: Path) -> Running:
        """Start a process.

        Raises:
            InputError: the system starts none.
        """
        try:
            return LocalRun(task, log, self._threads)
        except OSError as error:
            raise InputError(f"cannot start a run: {error.strerror or error}") from error


class RayRun:
    """A process on a machine of a cluster, held by a Ray actor there."""

    def __init__(self, actor: Any, task: bytes, log: Path) -> None:
        import ray

        self._ray = ray
        self._actor = actor
        self._code = actor.carry_out.remote(task, str(log))

    def poll(self) -> int | None:
        """Return its exit code; None while it runs."""
        done, _ = self._ray.wait([self._code], timeout=0)
        return self._result() if done else None

    def _result(self) -> int:
        try:
            return int(self._ray.get(self._code))
        except self._ray.exceptions.RayError:
            return LOST

    def ask_to_stop(self) -> None:
        """Send SIGTERM to the process."""
        self._actor.ask_to_stop.remote()

    def wait(self) -> None:
        """Wait until it has ended."""
        self._result()


class RayLauncher:
    """Starts runs on the machines of a Ray cluster.

    Args:
        address: of the cluster, such as ``auto`` or ``ray://head:10001``.
        jobs: how many may run at a time, each on one core; None takes the cluster's cores.

    Raises:
        ConfigError: Ray is not installed.
        InputError: there is no cluster at the address.
    """

    def __init__(self, address: str, jobs: int | None) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError("a cluster needs Ray: pip install 'csqtool[ray]'") from error
        if not ray.is_initialized():
            try:
                ray.init(address=address, log_to_driver=False, logging_level="error")
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise InputError(f"no Ray cluster answers at {address!r}: {str(error).splitlines()[0]}") from error
        self.jobs = jobs or max(1, int(ray.cluster_resources().get("CPU", 1)))
        # Two calls at a time: one carries out, the other one asks it to stop.
        self._actors = ray.remote(num_cpus=1, max_concurrency=2)(RemoteRun)

    def start(self, task: bytes, log: Path) -> Running:
        """Start an actor, and a process at its side."""
        return RayRun(self._actors.remote(os.getcwd()), task, log)


class RemoteRun:
    """The Ray actor of a run.

    Args:
        folder: the working folder, to which paths in the settings are relative.
    """

    def __init__(self, folder: str) -> None:
        os.chdir(folder)
        self._run: LocalRun | None = None

    def carry_out(self, task: bytes, log: str) -> int:
        """Carry out a run, and return its exit code."""
        self._run = LocalRun(task, Path(log), threads=1)
        self._run.wait()
        code = self._run.poll()
        assert code is not None
        return code

    def ask_to_stop(self) -> None:
        """Send SIGTERM to the process."""
        if self._run is not None:
            self._run.ask_to_stop()
