"""What a block of code does to the machine: programs that it starts, files that it writes, connections."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.rename": 2, "os.remove": 1, "os.mkdir": 1, "os.rmdir": 1, "os.link": 2, "os.symlink": 2, "os.chmod": 1,
           "os.chown": 1, "os.truncate": 1, "os.utime": 1}  # event to the number of its paths  # fmt: skip
STARTS = {"os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn"}
CONNECTS = {"socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request",
            "http.client.connect", "ftplib.connect", "smtplib.connect"}  # fmt: skip


@dataclass
class Seen:
    """What was seen.

    Attributes:
        folders: where files may be written.
        programs: the first arguments of what may be started.
        wrong: everything else: programs, files and connections.
        started: the first arguments of what was started, whether it may be or not.
    """

    folders: Sequence[str]
    programs: frozenset[tuple[str, ...]]
    wrong: list[str] = field(default_factory=list)
    started: set[tuple[str, ...]] = field(default_factory=set)


_now: list[Seen] = []
_hooked: list[bool] = []  # Python's audit hooks stay for good


@contextmanager
def watched(folders: Sequence[Path], programs: frozenset[tuple[str, ...]] = frozenset()) -> Iterator[Seen]:
    """Collect what a block does, in all threads of this process.

    Args:
        folders: where it may write.
        programs: the first arguments of what it may start.
    """
    if not _hooked:
        sys.addaudithook(_hear)
        _hooked.append(True)
    seen = Seen([os.path.realpath(folder) for folder in folders], programs)
    _now.append(seen)
    try:
        yield seen
    finally:
        _now.remove(seen)


def paths_written(event: str, arguments: tuple[Any, ...]) -> list[str]:
    """Return the files and folders that an audit event writes, renames or removes, with links followed."""
    if event == "open":
        path, mode, flags = arguments
        paths = [path] if flags & WRITING or set(mode or "") & set("wax+") else []
    else:
        paths = list(arguments[: CHANGES.get(event, 0)])
    return [os.path.realpath(os.fsdecode(path)) for path in paths if isinstance(path, str | bytes | os.PathLike)]


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    for seen in _now:
        for path in paths_written(event, arguments):
            if path != os.devnull and not any(path == one or path.startswith(one + os.sep) for one in seen.folders):
                seen.wrong.append(f"{event} {path}")
        if event == "subprocess.Popen":
            words = (os.path.basename(str(arguments[0])), *map(str, list(arguments[1])[1:3]))
            seen.started.add(words)
            if words not in seen.programs:
                seen.wrong.append(f"starts {' '.join(words)}")
        elif event in STARTS or event in CONNECTS:
            seen.wrong.append(f"{event} {str(arguments)[:100]}")
