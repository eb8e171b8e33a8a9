"""Starting, calling and ending the process."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from csqtool.errors import CsqtoolError, InputError
from csqtool.files import no_temporary_files
from csqtool.sandbox import wire
from csqtool.sandbox.limits import Limits

PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class SandboxError(CsqtoolError, RuntimeError):
    """What ran in the sandbox failed: it raised, crashed, or took more time or memory than allowed; says which."""


class Sandbox:
    """A process that calls functions of csqtool; it is started by the first call, and anew after a crash.

    Args:
        limits: of the process; None takes the defaults.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0  # the process that started it: a fork of that one must not use its pipes
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.generation = 0

    @property
    def limits(self) -> Limits:
        """The limits of the process."""
        return self._limits or Limits.default()

    def call(self, function: str, seconds: float | None = None, **arguments: Any) -> Any:
        """Return what a function returns.

        Args:
            function: ``package.module:name``, of csqtool.
            seconds: how long it may take, instead of the limit.
            arguments: its keyword arguments: plain values, bytes and arrays of numbers.

        Raises:
            SandboxError: it raised, or its process came to an end.
        """
        limits = self.limits
        seconds = limits.seconds if seconds is None else seconds
        with self._lock:
            process = self._started(limits)
            assert process.stdin is not None
            assert process.stdout is not None
            late = threading.Event()

            def end() -> None:
                late.set()
                process.kill()

            timer = threading.Timer(seconds, end)
            timer.daemon = True
            timer.start()
            try:
                wire.write(process.stdin, {"function": function, "arguments": arguments, "seconds": seconds})
                answer = wire.read(process.stdout, max(limits.memory_bytes, 2**30))
            except (EOFError, OSError, ValueError) as error:
                raise SandboxError(self._last_words(process, seconds if late.is_set() else None)) from error
            except BaseException:  # Ctrl-C: its answer would be taken for the next call's
                self.close()
                raise
            finally:
                timer.cancel()
            if "error" in answer:
                raise SandboxError(str(answer["error"]))
            return answer["value"]

    def start(self) -> None:
        """Start the process without waiting for it."""
        with self._lock:
            self._started(self.limits)

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            process, self._process = self._process, None
            if process is not None:
                process.kill()
                process.wait()
                for stream in (process.stdin, process.stdout):
                    assert stream is not None
                    with contextlib.suppress(OSError):  # what was still to be written
                        stream.close()
            if self._folder is not None:
                self._folder.cleanup()
                self._folder = None

    def _started(self, limits: Limits) -> subprocess.Popen[bytes]:
        if self._owner != os.getpid():
            self._process = self._folder = None
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        # An empty working folder: a module that lies in the user's is not imported in place of a library, and what
        # a library writes is removed with it.
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="csqtool-", ignore_cleanup_errors=True)
        except OSError as error:
            raise InputError(no_temporary_files(error)) from error
        paths = [str(PACKAGE_ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, paths))}
        with open(Path(self._folder.name) / "stderr", "wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "csqtool.sandbox.child", str(limits.memory_bytes)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=self._folder.name, env=environment,
            )  # fmt: skip
        self._owner = os.getpid()
        self.generation += 1
        return self._process

    def _last_words(self, process: subprocess.Popen[bytes], seconds: float | None) -> str:
        """Return why the process came to an end, and remove what is left of it."""
        if seconds is None:
            try:
                process.wait(10)  # its pipe closes before it has ended
            except subprocess.TimeoutExpired:
                process.kill()
        code = process.wait()
        said = ""
        if self._folder is not None:
            with open(Path(self._folder.name) / "stderr", "rb") as errors:
                errors.seek(max(0, os.fstat(errors.fileno()).st_size - 4096))
                lines = errors.read().decode(errors="replace").strip().splitlines()
            said = f": {lines[-1]}" if lines else ""
        self.close()
        if seconds is not None:
            return f"it took longer than the {seconds:g} seconds that are allowed, and was ended"
        if code < 0:
            try:
                name = signal.Signals(-code).name
            except ValueError:
                name = f"signal {-code}"
            return f"its process crashed with {name}{said}"
        return f"its process ended with {code}{said}"


_shared = Sandbox()
atexit.register(_shared.close)


def shared() -> Sandbox:
    """Return the sandbox that all of this process share."""
    return _shared


def call(function: str, seconds: float | None = None, **arguments: Any) -> Any:
    """Return what a function returns in the shared sandbox, see `Sandbox.call`.

    Raises:
        SandboxError: it raised, or its process came to an end.
    """
    return _shared.call(function, seconds, **arguments)


def warm_up() -> None:
    """Start the shared sandbox beside what this process does next."""
    _shared.start()
