"""Work in a fork: what comes back, and what happens to a fork that fails or is not waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from csqtool import forks
from csqtool.forks import beside

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux alone")


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "_allowed", True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


def running(function: Callable[[], str]) -> AbstractContextManager[Callable[[], str]]:
    return beside(function, str.encode, bytes.decode)


def test_a_result_comes_from_another_process(allowed: None) -> None:
    with running(lambda: f"{os.getpid()} Δ") as result:
        assert result() not in ("", f"{os.getpid()} Δ")


def test_a_process_that_nobody_has_given_free_is_not_forked() -> None:
    with running(lambda: str(os.getpid())) as result:
        assert result() == str(os.getpid())


def test_a_process_on_one_core_is_not_forked(allowed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    with running(lambda: str(os.getpid())) as result:
        assert result() == str(os.getpid())


def test_an_error_is_raised_here_and_a_fork_says_nothing(allowed: None, capfd: pytest.CaptureFixture[str]) -> None:
    def fails() -> str:
        raise ValueError("no such layer")

    with running(fails) as result, pytest.raises(ValueError, match="no such layer"):
        result()
    assert capfd.readouterr() == ("", "")


def test_the_work_of_a_fork_that_was_killed_is_done_here(allowed: None) -> None:
    here = os.getpid()

    def killed_elsewhere() -> str:
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    with running(killed_elsewhere) as result:
        assert result() == "done"


def test_a_fork_that_nobody_waits_for_is_ended_with_the_block(allowed: None, tmp_path: Path) -> None:
    number = tmp_path / "pid"

    def endless() -> str:
        number.write_text(str(os.getpid()))
        while True:
            time.sleep(1)

    with running(endless):
        while not (number.exists() and number.read_text()):
            time.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(int(number.read_text()), 0)


def test_a_fork_that_dies_in_the_middle_of_its_answer_is_not_believed(
    allowed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half_an_answer(_function: object, _receiver: Connection, sender: Connection) -> None:
        os.write(sender.fileno(), (100).to_bytes(4, "big") + b"half")  # a length, and not so many bytes
        os._exit(1)

    monkeypatch.setattr(forks, "_answer", half_an_answer)
    with running(lambda: "done") as result:
        assert result() == "done"


INTERRUPTED = """
import os, signal, time
from csqtool import forks, interruption

os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGTERM))
os.sched_getaffinity = lambda _: {0, 1}
interruption.AGAIN_SECONDS = 60
interruption.signals_interrupt()
forks.allow_forks()
try:
    with forks.beside(lambda: time.sleep(60) or "", str.encode, bytes.decode):
        print("went on")
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_signal_while_a_fork_begins_interrupts_as_soon_as_it_has_begun() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False, timeout=30)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")
