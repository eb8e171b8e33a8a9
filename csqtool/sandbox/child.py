"""The process itself: takes calls from standard input, answers on what was standard output, and ends with either.

Called with the limits as arguments: bytes of memory. Every call brings its own limit of CPU time.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from typing import Any

from csqtool.sandbox import wire


def main() -> None:
    """Answer calls until there are no more."""
    memory_bytes = int(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; ours ends us
    _restrict(memory_bytes)
    # Libraries that print must not print into the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            request = wire.read(sys.stdin.buffer, 2**62)
        except EOFError:
            return
        try:
            _limit_cpu(request["seconds"])
            answer = {"value": _function(request["function"])(**request["arguments"])}
        except MemoryError:
            answer = {"error": f"it takes more than the {memory_bytes / 1e9:.1f} GB of memory that are allowed"}
        except Exception as error:
            answer = {"error": _in_a_line(error)}
        try:
            wire.write(answers, answer)
        except TypeError as error:  # before the first byte
            wire.write(answers, {"error": _in_a_line(error)})
        del request, answer


def _function(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _in_a_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    first = lines[0] if lines else "no message"
    # RuntimeError is how functions of ours say what a library said.
    return first if type(error) is RuntimeError else f"{type(error).__name__}: {first}"


def _restrict(memory_bytes: int) -> None:
    """Limit the memory of this process, and let it leave no core file."""
    try:
        import resource
    except ImportError:  # Windows: time alone is limited
        return
    # RLIMIT_AS would also count what libraries reserve and never use: thread stacks, arenas, the GPU's addresses.
    kind = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
    for what, most in ((kind, memory_bytes), (resource.RLIMIT_CORE, 0)):
        try:
            hard = resource.getrlimit(what)[1]
            resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
        except (OSError, ValueError):  # a system that knows the limit by name alone
            continue


def _limit_cpu(seconds: float) -> None:
    """Allow so many seconds on all cores from now: an endless loop ends even when nobody waits for it any more."""
    try:
        import resource
    except ImportError:
        return
    used = time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    most = int(used + (seconds + 1) * (os.cpu_count() or 1)) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


if __name__ == "__main__":
    main()
