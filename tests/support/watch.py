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
# Event to the number of its paths, and to where the descriptors of folders are that these are relative to.
CHANGES = {"os.rename": (2, 2), "os.remove": (1, 1), "os.mkdir": (1, 2), "os.rmdir": (1, 1), "os.link": (2, 2),
           "os.symlink": (2, 2), "os.chmod": (1, 2), "os.chown": (1, 3), "os.truncate": (1, 2),
           "os.utime": (1, 3)}  # fmt: skip
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
        count, first = CHANGES.get(event, (0, 0))
        folders = [*arguments[first:], -1, -1]
        paths = [_within(path, folder) for path, folder in zip(arguments[:count], folders, strict=False)]
    return [os.path.realpath(os.fsdecode(path)) for path in paths if isinstance(path, str | bytes | os.PathLike)]


def _within(path: Any, folder: Any) -> Any:
    """Return a path that may be relative to the descriptor of a folder."""
    if not isinstance(folder, int) or folder == -1 or isinstance(path, int):
        return path
    try:
        return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))
    except OSError:  # of another system
        return None


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
