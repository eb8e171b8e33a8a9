"""Ctrl-C and SIGTERM: the search stops at the next step, and its state is saved."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SAME_SIGNAL_SECONDS = 2.0


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether to stop: after Ctrl-C, or after SIGTERM, which schedulers send.

    A second signal raises KeyboardInterrupt at once, unless it comes within two seconds: launchers of several
    processes forward signals that the terminal has already sent.
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
