"""Text for people: tables, sizes, and escaping of control characters."""

from __future__ import annotations

import re
from collections.abc import Sequence

from csqtool.errors import ConfigError

_COMMAND = re.compile(r"^(\s*)(?:(:)(?=:)|(#)(?=#\[))")


def printable(text: object) -> str:
    """Return `text` with control characters written as escapes, and so the first of a CI system's command.

    Names come from files. GitHub and Azure take a line that begins with ``::`` or ``##[`` for a command.
    """
    shown = "".join(c if c.isprintable() or c == " " else _escaped(c) for c in str(text))
    return _COMMAND.sub(lambda found: found[1] + ("\\x3a" if found[2] else "\\x23"), shown)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode()


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return an aligned table; columns that hold only numbers are right-aligned."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    numeric = [all(_is_number(row[i]) for row in rows) and bool(rows) for i in range(len(header))]

    def line(texts: Sequence[str]) -> str:
        padded = (t.rjust(w) if right else t.ljust(w) for t, w, right in zip(texts, widths, numeric, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), line(["─" * width for width in widths]), *map(line, cells)])


def _is_number(cell: object) -> bool:
    return isinstance(cell, int | float) or (isinstance(cell, str) and cell[:1].isdigit())


def size(size_bytes: int) -> str:
    """Return bytes with thousands separators, such as ``20,992 B``."""
    return f"{size_bytes:,} B"


_OPERATION_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_operations(text: str | int) -> int:
    """Return a number of operations: ``1.5G`` is 1,500,000,000.

    Raises:
        ConfigError: it is none.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]?)\s*", str(text))
    if not match or len(match[1]) > 30:
        raise ConfigError(f"{str(text)[:40]!r} is no count of operations; write a number, with or without K, M, G or T")
    operations = float(match[1]) * _OPERATION_UNITS[match[2].upper()]
    if not operations < 2**53:  # sums stay exact in float64
        raise ConfigError(f"{str(text)[:40]} operations are more than any network has")
    return int(operations)


def operations(count: float) -> str:
    """Return a number of operations in a few digits, such as ``1.312 G``."""
    for unit in ("T", "G", "M", "K"):
        if count >= _OPERATION_UNITS[unit]:
            return f"{count / _OPERATION_UNITS[unit]:.4g} {unit}"
    return f"{count:.4g}"


def duration(seconds: float) -> str:
    """Return a time as people say it: ``0.4 s``, ``42 s``, ``12 min``, ``3.4 h``."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


_SIZE_UNITS = {"": 1, "B": 1, "KB": 1000, "KIB": 1024, "MB": 1000**2, "MIB": 1024**2, "GB": 1000**3, "GIB": 1024**3}


def parse_size(text: str | int) -> int:
    """Return bytes: ``60KB`` is 60,000, ``60KiB`` is 61,440, a plain number is bytes.

    Raises:
        ConfigError: it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(text))
    if not match or match[2].upper() not in _SIZE_UNITS:
        raise ConfigError(f"{text!r} is no size; write bytes, or a number with KB, KiB, MB, MiB, GB or GiB")
    size_bytes = float(match[1]) * _SIZE_UNITS[match[2].upper()]
    if not size_bytes < 2**63:
        raise ConfigError(f"{str(text)[:40]} is no size: no file is that large")
    return int(size_bytes)
