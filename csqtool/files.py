"""Atomic writing: files are written beside their destination and renamed, so none is ever half-written."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from csqtool.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any failure it is removed.

    Missing parent folders are created.

    Raises:
        InputError: the folder cannot be created or written to, or `path` is a folder, a pipe or a device.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; name a file to write")
        if path.exists() and not path.is_file():  # renaming would replace it by a file
            raise InputError(f"{path} is no regular file; name a file to write")
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        # It is private until here; a model file gets the permissions of the user's other files.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            _surely(lambda: temporary.unlink(missing_ok=True))


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield an empty folder of this user's, which is removed at the end, also where a signal comes meanwhile.

    `tempfile.TemporaryDirectory` leaves its folder if Ctrl-C comes just after it was made, or while it is removed.
    """
    path = Path(tempfile.gettempdir()) / f"csqtool-{secrets.token_hex(8)}"
    try:
        path.mkdir(mode=0o700)
        yield path
    finally:
        _surely(lambda: shutil.rmtree(path, ignore_errors=True))


def _surely(remove: Callable[[], None]) -> None:
    """Remove something; once more if Ctrl-C or SIGTERM comes meanwhile."""
    try:
        remove()
    except KeyboardInterrupt:
        remove()
        raise


def check_writable(path: Path) -> None:
    """Check that `path` can be written, before long work whose result it is to hold; nothing is created.

    Raises:
        InputError: its folder, or the nearest one that exists, takes no files.
    """
    folder = Path(os.path.abspath(path)).parent
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir():
            raise InputError(f"cannot write {path}: {folder} is not a folder")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {path}: the folder {folder} takes no files from you")


@contextmanager
def locked(folder: Path, busy: str) -> Iterator[None]:
    """Lock a folder until the block ends, or the process does; it is created if it is missing.

    A folder that was created here and holds nothing at the end is removed.

    Args:
        folder: which one.
        busy: the message if another process has locked it.

    Raises:
        InputError: another process has locked it, or it cannot be created.
    """
    from filelock import FileLock, Timeout

    lock, was_there = FileLock(folder / ".lock", timeout=0), folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise InputError(busy) from error
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        with suppress(OSError):  # another process may have come
            if not was_there and [path.name for path in folder.iterdir()] == [".lock"]:
                (folder / ".lock").unlink()
                folder.rmdir()
        lock.release()


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def no_temporary_files(error: OSError) -> str:
    """Return what to say where the system's temporary folder takes no more files."""
    where = error.filename or "the temporary folder"
    return f"cannot write temporary files ({where}): {error.strerror or error}; TMPDIR can name a folder with space"


def write_json(path: Path, document: Any) -> None:
    """Write `document` as indented JSON to `path` atomically."""
    write_bytes(path, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def read_bytes(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        InputError: the file is missing, not a regular file, or cannot be read.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is not a file")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object without repeated keys; for ``json.loads(…, object_pairs_hook=unique_keys)``.

    Raises:
        ValueError: a key is repeated.
    """
    document: dict[str, Any] = {}
    for key, value in pairs:
        if key in document:
            raise ValueError(f"the key {key!r:.100} is repeated")
        document[key] = value
    return document
