"""How much time and memory a process for hostile files may take."""

from __future__ import annotations

import os
from dataclasses import dataclass

from csqtool.errors import ConfigError

SECONDS = 300.0  # of one call: a batch of 250 large images on a slow machine takes a minute
MEMORY_BYTES = 16 * 2**30  # such a batch takes 4 GiB with all optimizations off
LEAST_MEMORY_BYTES = 2 * 2**30  # the libraries themselves take some hundred MB


@dataclass(frozen=True)
class Limits:
    """Limits of a process.

    Attributes:
        seconds: how long one call may take; everywhere.
        memory_bytes: how much memory the process may take; on Linux exactly, elsewhere as far as the system heeds it.
    """

    seconds: float
    memory_bytes: int

    @classmethod
    def default(cls) -> Limits:
        """Return the limits that ``CSQTOOL_TIME_LIMIT`` (seconds) and ``CSQTOOL_MEMORY_LIMIT`` (GB) set.

        Without them: 300 seconds, and 16 GiB or three quarters of the machine's memory, whichever is less.

        Raises:
            ConfigError: a variable is not a number above zero.
        """
        seconds = _variable("CSQTOOL_TIME_LIMIT")
        memory = _variable("CSQTOOL_MEMORY_LIMIT")
        return cls(SECONDS if seconds is None else seconds, _memory() if memory is None else int(memory * 1e9))


def _variable(name: str) -> float | None:
    text = os.environ.get(name, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise ConfigError(f"the environment variable {name} must be a number above 0, got {text!r}")
    return value


def _memory() -> int:
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return MEMORY_BYTES
    return max(LEAST_MEMORY_BYTES, min(MEMORY_BYTES, physical * 3 // 4))
