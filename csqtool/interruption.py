"""Ctrl-C and SIGTERM: long work stops at its next step, everything else at once; nothing is left half-written."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

SAME_SIGNAL_SECONDS = 2.0
# Schedulers kill a process some 10 to 30 seconds after SIGTERM. What has not come to a step by then is left.
PATIENCE_SECONDS = 7.0
AGAIN_SECONDS = 3.0  # after which KeyboardInterrupt is raised again: Python drops one that is raised in a destructor

_asked = threading.Event()


def signals_interrupt() -> None:
    """Let SIGTERM do what Ctrl-C does: raise KeyboardInterrupt, so that temporary files and processes are removed."""

    def handle(number: int, frame: Any) -> None:
        _asked.set()
        again = threading.Timer(AGAIN_SECONDS, _signal_main_thread, [number])
        again.daemon = True
        again.start()
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):  # who ignores it goes on ignoring
            signal.signal(number, handle)


def was_interrupted() -> bool:
    """Return whether a signal has raised KeyboardInterrupt; libraries may have made another exception of it."""
    return _asked.is_set()


def ignore_signals() -> None:
    """Ignore Ctrl-C and SIGTERM: all work has ended, and what removes temporary files is not to be interrupted."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether to stop: after Ctrl-C, or after SIGTERM, which schedulers send.

    A second signal raises KeyboardInterrupt at once, unless it comes within two seconds: launchers of several
    processes forward signals that the terminal has already sent. Without one, KeyboardInterrupt is raised where the
    block has not ended within `PATIENCE_SECONDS`.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    first = 0.0
    waiting: threading.Timer | None = None

    def handle(number: int, frame: Any) -> None:
        nonlocal first, waiting
        if pressed.is_set() and time.monotonic() - first > SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt
        if not pressed.is_set():
            first = time.monotonic()
            waiting = threading.Timer(PATIENCE_SECONDS, _signal_main_thread, [number])
            waiting.daemon = True
            waiting.start()
        pressed.set()

    for number in before:
        signal.signal(number, handle)
    try:
        yield pressed.is_set
    finally:
        if waiting is not None:
            waiting.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def signals_wait() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait for the end of a short block, such as a fork.

    Python runs code of libraries around a fork, and prints and drops what a signal's handler raises there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    raising = {number: handler for number, handler in before.items() if callable(handler)}
    for number in raising:
        signal.signal(number, lambda number, _: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in raising.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])


def _signal_main_thread(number: int) -> None:
    """Send the main thread the signal that came before: a process in the background may ignore SIGINT."""
    main = threading.main_thread().ident
    if os.name == "posix" and main is not None:
        with suppress(ProcessLookupError):
            signal.pthread_kill(main, number)  # unlike a flag, it also ends a system call that waits
    else:
        signal.raise_signal(number)
