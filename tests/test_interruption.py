from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from csqtool import interruption
from csqtool.interruption import interruptible, signals_wait


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_to_stop_and_its_handler_is_put_back(number: int) -> None:
    before = signal.getsignal(number)
    with interruptible() as stop:
        assert not stop()
        send(number)
        assert stop()
    assert signal.getsignal(number) is before


def test_a_second_signal_interrupts_at_once_but_not_the_one_that_a_launcher_passes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(interruption.time, "monotonic", lambda: now[0])
    with interruptible() as stop:
        send(signal.SIGINT)
        now[0] += 1.9
        send(signal.SIGTERM)
        assert stop()
        now[0] += 0.2
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_handlers_are_put_back_after_an_exception() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="in the block"), interruptible():
        raise ValueError("in the block")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_thread_beside_the_main_one_installs_no_handlers() -> None:
    before = signal.getsignal(signal.SIGINT)
    found: list[tuple[bool, bool]] = []

    def work() -> None:
        with interruptible() as stop:
            stops: Callable[[], bool] = stop
            found.append((stops(), signal.getsignal(signal.SIGINT) is before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, True)]


def test_a_block_that_comes_to_no_step_is_interrupted_after_some_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(interruption, "SAME_SIGNAL_SECONDS", 0.05)

    def comes_to_no_step() -> None:
        with interruptible():
            send(signal.SIGTERM)
            time.sleep(20)

    with pytest.raises(KeyboardInterrupt):
        comes_to_no_step()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_block_that_it_must_not_interrupt_is_raised_at_its_end(number: signal.Signals) -> None:
    before = signal.signal(number, signal.default_int_handler)
    done = []

    def forks() -> None:
        with signals_wait():
            send(number)
            done.append("the block")
        done.append("what follows")

    try:
        with pytest.raises(KeyboardInterrupt):
            forks()
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert done == ["the block"]


def test_a_signal_that_is_ignored_stays_so_in_a_block_that_it_must_not_interrupt() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals_wait():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            send(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


DROPPED = """
import os, signal, time
from csqtool import interruption

class Dropping:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass

interruption.AGAIN_SECONDS = 0.1
interruption.signals_interrupt()
dropping = Dropping()
del dropping
time.sleep(20)
"""


@pytest.mark.parametrize("ignored", ["", "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"], ids=["", "in background"])
def test_an_interruption_that_python_drops_is_raised_again(ignored: str) -> None:
    code = f"import signal\n{ignored}{DROPPED}"  # a script's background processes ignore SIGINT
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=15)
    assert "Exception ignored" in done.stderr
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")
    assert done.returncode == -signal.SIGINT
