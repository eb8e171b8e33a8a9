"""The inference as one header: declarations for all, the code where MODEL_IMPLEMENTATION is defined."""

from __future__ import annotations

from exporters.c.project import ONE_CMAKE, ONE_MAKEFILE

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
        "Makefile": ONE_MAKEFILE,
        "CMakeLists.txt": ONE_CMAKE,
        "main.c": text["main.c"].replace('#include "model.h"', '#define MODEL_IMPLEMENTATION\n#include "model.h"', 1),
        "model.h": f"{text['model.h']}{_BEGIN}{code}\n#endif\n",
    }
    return {name: content.encode() for name, content in done.items()}


def _after(text: str, line: str) -> str:
    _, _, rest = text.partition(line)
    return rest
