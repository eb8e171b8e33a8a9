"""The inference as one header: declarations for all, the code where MODEL_IMPLEMENTATION is defined."""

from __future__ import annotations

_MAKEFILE = """CFLAGS ?= -std=c99 -O3

example: main.c model.h
\t$(CC) $(CFLAGS) main.c -o example

clean:
\trm -f example

.PHONY: clean
"""
_CMAKE = """cmake_minimum_required(VERSION 3.10)
project(model C)
set(CMAKE_C_STANDARD 99)
add_library(model INTERFACE)
target_include_directories(model INTERFACE ${CMAKE_CURRENT_SOURCE_DIR})
add_executable(example main.c)
target_link_libraries(example model)
"""
_BEGIN = """
/* In one source file, define MODEL_IMPLEMENTATION before including this header: the code follows. */
#if defined(MODEL_IMPLEMENTATION) && !defined(MODEL_IMPLEMENTED)
#define MODEL_IMPLEMENTED

"""


def merged(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return the files of an inference with `model.c` and `weights.c` inside of `model.h`."""
    text = {name: content.decode() for name, content in files.items()}
    weights = _after(text["weights.c"], '#include "weights.h"\n\n')
    # Arrays begin a line; nothing else in this file does so with this word.
    weights = "".join(f"static {line}" if line.startswith("const ") else line for line in weights.splitlines(True))
    code = _after(text["model.c"], '#include "model.h"\n\n').replace('\n#include "weights.h"\n', f"\n{weights}", 1)
    done = {
        **{name: content for name, content in text.items() if name not in ("model.c", "weights.c", "weights.h")},
        "Makefile": _MAKEFILE,
        "CMakeLists.txt": _CMAKE,
        "main.c": text["main.c"].replace('#include "model.h"', '#define MODEL_IMPLEMENTATION\n#include "model.h"', 1),
        "model.h": f"{text['model.h']}{_BEGIN}{code}\n#endif\n",
    }
    return {name: content.encode() for name, content in done.items()}


def _after(text: str, line: str) -> str:
    _, _, rest = text.partition(line)
    return rest
