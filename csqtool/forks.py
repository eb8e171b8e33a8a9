"""Work in a fork of this process, on another core, beside what the process does itself.

A fork is safe where nothing else runs in the process: the command line says so with `allow_forks`. A user's own
process, which may have threads and devices at work, is never forked.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from csqtool.interruption import signals_wait

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

T = TypeVar("T")
_allowed = False


def allow_forks() -> None:
    """Say that this process runs one command of csqtool and nothing else."""
    global _allowed  # noqa: PLW0603 - it is a fact about the process
    _allowed = True


def _useful() -> bool:
    """Return whether this process may be forked, and has a second core for the fork."""
    return _allowed and sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1


@contextmanager
def beside(
    function: Callable[[], T], to_bytes: Callable[[T], bytes], from_bytes: Callable[[bytes], T]
) -> Iterator[Callable[[], T]]:
    """Begin a function in a fork, and yield what waits for its result.

    Where there is no fork, or it ends without a result, the function runs in this process when the result is asked
    for; so its errors are raised here. A fork that still runs at the end of the block is ended.

    Args:
        function: what to run; its effects on the process do not come back, only its result does.
        to_bytes: turns the result into bytes, in the fork.
        from_bytes: turns them into the result.
    """
    if not _useful():
        yield function
        return
    import multiprocessing  # here: the command line starts without it

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    fork = context.Process(target=_answer, args=(lambda: to_bytes(function()), receiver, sender), daemon=True)

    def result() -> T:
        try:
            content = receiver.recv_bytes()
        except (EOFError, OSError):  # it ended before its result, or in the middle of it
            return function()
        return from_bytes(content)

    try:
        with signals_wait(), warnings.catch_warnings():
            # Of processes with threads; ours wait for work, and the fork takes none of their locks.
            warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
            fork.start()
        sender.close()
        yield result
    finally:
        if fork.pid is not None:
            fork.kill()
            fork.join()
        receiver.close()


def _answer(function: Callable[[], bytes], receiver: Connection, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes, and the first one ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # what was there before is no garbage of the fork's, and looking at it copies its memory
    gc.set_threshold(100_000)  # what it imports is none either
    receiver.close()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)  # the threads of before are not in the fork
    try:
        sender.send_bytes(function())
    except BaseException:  # the first process runs the function itself, and says what is wrong
        os._exit(1)
