"""The C side of the codec: the reader `csq.h`, and a program that shows how to use it."""

from __future__ import annotations

import importlib.resources


def c_header() -> bytes:
    """Return the C99 reader, ``csq.h``."""
    return _resource("csq.h")


def c_example() -> bytes:
    """Return ``example.c``, which prints a checksum of each tensor of a model compiled in as an array."""
    return _resource("example.c")


def _resource(name: str) -> bytes:
    return (importlib.resources.files("csqtool.csq") / "c" / name).read_bytes()
