"""A folder with a packed model as an array in C: its files are known, and the array is a `.csq` file."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np

from csqtool.errors import FormatError
from csqtool.files import read_bytes
from csqtool.verifying.c_sources import known
from csqtool.verifying.c_text import shown

FILES = ("csq.h", "model.h", "model.c", "example.c")
_SOURCE = re.compile(
    rb'\s*#include "model\.h"\s*\n\s*const\s+size_t\s+csq_model_size\s*=\s*([1-9]\d{0,9})u\s*;'
    rb"\s*const\s+uint8_t\s+csq_model\s*\[\s*([1-9]\d{0,9})\s*\]\s*=\s*\{([0-9a-fx,\s]*)\}\s*;\s*"
)


def is_package(folder: Path) -> bool:
    """Tell whether a folder holds a packed model and its reader, and no inference."""
    return (folder / "csq.h").is_file() and not (folder / "weights.h").exists()


def read_package(folder: Path) -> tuple[bytes, list[str]]:
    """Return the `.csq` file in a folder of C, and what is not explained there.

    White space in ``model.c`` is free; everything else must be as it was written. Nothing is compiled.

    Raises:
        FormatError: model.c holds no array.
        InputError: a file cannot be read.
    """
    faults = []
    for entry in sorted(folder.iterdir()):
        if entry.name not in FILES or not entry.is_file():
            faults.append(f"{shown(entry.name)}: not part of a packed model")
        elif entry.name != "model.c" and _digest(entry) not in known()[f"packed {entry.name}"]:
            faults.append(f"{entry.name}: not the file that comes with a packed model")
    missing = [name for name in FILES[:3] if not (folder / name).is_file()]
    if missing:
        raise FormatError(f"{folder} holds no {missing[0]}; csqtool export --format c --content weights writes one")
    found = _SOURCE.fullmatch(_lines(folder / "model.c"))
    content = None if found is None else _bytes(b"".join(found[3].split()))
    if found is None or content is None or not int(found[1]) == int(found[2]) == len(content):
        raise FormatError(f"{folder / 'model.c'} is not one array of bytes, its size, and nothing else")
    return content, faults


def _digest(path: Path) -> str:
    return hashlib.sha256(_lines(path)).hexdigest()


def _lines(path: Path) -> bytes:
    return read_bytes(path).replace(b"\r\n", b"\n")


def _bytes(text: bytes) -> bytes | None:
    """Return the bytes of ``0x00,0x01``; None if it is something else."""
    if len(text) % 5 != 4:
        return None
    rows = np.frombuffer(text + b",", np.uint8).reshape(-1, 5)
    if (rows[:, [0, 1, 4]] != np.frombuffer(b"0x,", np.uint8)).any() or np.isin(rows[:, 2:4], list(b",x")).any():
        return None
    return bytes.fromhex(rows[:, 2:4].tobytes().decode("ascii"))
