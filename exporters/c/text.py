"""C text: arrays, structures, file heads."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

LINE = 116


def kernel(name: str) -> str:
    """Return the source of a kernel."""
    return (importlib.resources.files("exporters.c") / "kernels" / f"{name}.c").read_text(encoding="utf-8")


def wrapped(items: Iterable[str], indent: str = "    ") -> str:
    """Return items, separated by commas, in lines."""
    lines, line = [], indent
    for one in items:
        if len(line) + len(one) > LINE and line != indent:
            lines.append(line.rstrip())
            line = indent
        line += one + ", "
    lines.append(line.rstrip().rstrip(","))
    return "\n".join(lines)


def array(kind: str, name: str, values: Iterable[Any]) -> str:
    """Return the definition of a constant array; ``static`` and so on are part of `kind`."""
    items = [literal(value) for value in values]
    return f"{kind} {name}[{len(items)}] = {{\n{wrapped(items)}\n}};\n"


def literal(value: Any) -> str:
    """Return a number in C; floats exactly, in hexadecimal."""
    if isinstance(value, float | np.floating):
        return f"{float(value).hex()}f"
    return "(-2147483647 - 1)" if int(value) == -(2**31) else str(int(value))


def structure(kind: str, name: str, fields: Mapping[str, Any], front: str = "") -> str:
    """Return the definition of a constant structure by the names of its fields."""
    items = [f".{key} = {value}" for key, value in fields.items()]
    return f"static const {kind} {name} = {{{front}\n{wrapped(items)}\n}};\n"


def escaped(text: str) -> str:
    """Return a string literal of a name; what is not printable ASCII is written in octal."""
    body = "".join(
        chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in text.encode("utf-8", "replace")
    )
    return f'"{body}"'


def commented(text: str) -> str:
    """Return a name as it is written in a comment."""
    shown = "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
    return shown.replace("*/", "* /").replace("/*", "/ *").rstrip("\\")


def flat(values: NDArray[Any]) -> list[Any]:
    """Return the elements of an array, in C order."""
    found: list[Any] = values.reshape(-1).tolist()
    return found
