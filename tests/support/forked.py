"""Commands in processes that are forked from one that has imported everything: a run takes what its work takes.

As a script it is the server: a line of JSON on stdin starts a command; on stdout come the process id and the exit code.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
IMPORTED = (
    "csqtool.cli", "csqtool.api", "csqtool.searching.runs", "csqtool.searching.finalizing", "csqtool.packing",
    "csqtool.verifying.verification", "csqtool.quantizing", "csqtool.layer_sensitivity", "csqtool.pipeline_runner",
    "csqtool.sweeping.runner", "csqtool.reporting.page", "csqtool.searching.csq", "csqtool.searching.lsq",
    "exporters.onnx.capture", "exporters.c", "exporters.csq", "torch._dynamo", "torch.onnx", "networkx", "onnxscript",
    "torch.export", "torchmetrics.classification", "rich.progress", "encodings.cp437",
)  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: exit code; negative for a signal.
        seconds: from its start to its end.
        late: from the signal to its end; 0 where it ended before.
        text: what it printed.
    """

    code: int
    seconds: float
    late: float
    text: str


class Forked:
    """The server, for a test."""

    def __init__(self) -> None:
        self._server = subprocess.Popen([sys.executable, "-W", "ignore", "-m", "tests.support.forked"], cwd=ROOT,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)  # fmt: skip
        assert self._answer(600) == "ready"

    def close(self) -> None:
        self._server.kill()
        self._server.communicate()

    def _answer(self, seconds: float) -> Any:
        assert self._server.stdout is not None
        ready, _, _ = select.select([self._server.stdout], [], [], seconds)
        return json.loads(self._server.stdout.readline()) if ready else None

    def run(self, *arguments: object, folder: Path, number: int = 0, after: float = 60, **limits: int) -> Ended:
        """Run a command in a folder, and send it the signal `number` after some seconds.

        Args:
            arguments: of csqtool.
            folder: its working folder; temporary files go to ``tmp`` in it.
            number: of the signal; without one, it must end by itself.
            after: seconds until the signal.
            limits: ``file_bytes``, the largest file that it may write; ``user``, the user that it runs as; ``at`` and
                ``own``, the number of a file operation in the folder at which it sends itself a signal, and the signal.
        """
        assert self._server.stdin is not None
        if not (folder / "tmp").exists():
            (folder / "tmp").mkdir()
            (folder / "tmp").chmod(0o777)
        began = time.monotonic()
        request = {"arguments": [str(one) for one in arguments], "folder": str(folder), **limits}
        self._server.stdin.write(json.dumps(request).encode() + b"\n")
        self._server.stdin.flush()
        process = self._answer(60)
        answer, late = self._answer(after), 0.0
        if answer is None:
            assert number, f"{arguments} took longer than {after} seconds"
            sent = time.monotonic()
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(process, number)
            answer = self._answer(30)
            late = time.monotonic() - sent
            assert answer is not None, f"{arguments} went on for 30 seconds after signal {number}"
        code, text = answer
        return Ended(code, time.monotonic() - began, late, text)


def serve() -> None:
    """Answer requests until there are no more."""
    import importlib

    for name in IMPORTED:
        importlib.import_module(name)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        (ready, begun), (reading, printing) = os.pipe(), os.pipe()
        process = os.fork()
        if process == 0:
            _command(**json.loads(line), begun=begun, printing=printing)
        os.read(ready, 1)
        print(json.dumps(process), flush=True)
        _, status = os.waitpid(process, 0)
        os.set_blocking(reading, False)  # a process that the command started may still hold the other end
        os.write(printing, b".")
        text = os.read(reading, 1 << 16)[:-1].decode(errors="replace")
        for one in (ready, begun, reading, printing):
            os.close(one)
        print(json.dumps([os.waitstatus_to_exitcode(status), text]), flush=True)


def _stop_itself(at: int, number: int, folder: str) -> None:
    """Send this process a signal at its `at`-th operation that writes, renames or removes a file of a folder."""
    from tests.support.watch import paths_written

    operations = itertools.count(1)

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if any(path.startswith(folder) for path in paths_written(event, arguments)) and next(operations) == at:
            os.kill(os.getpid(), number)

    sys.addaudithook(hear)


def _command(
    arguments: list[str],
    folder: str,
    begun: int,
    printing: int,
    file_bytes: int = 0,
    user: int = 0,
    at: int = 0,
    own: int = 0,
) -> None:
    import resource
    import tempfile

    from csqtool.cli import main

    os.setsid()
    os.chdir(folder)
    tempfile.tempdir = os.environ["TMPDIR"] = f"{folder}/tmp"
    for stream in (1, 2):
        os.dup2(printing, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if user:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    if file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    if at:
        _stop_itself(at, own, folder)
    sys.argv = ["csqtool", *arguments]
    code: Any = 0
    try:
        os.write(begun, b".")
        main()
    except SystemExit as stop:
        code = stop.code
    except KeyboardInterrupt:  # before the command line had begun, or after its end
        code = 128 + signal.SIGINT
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    serve()
