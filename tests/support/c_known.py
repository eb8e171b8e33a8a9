"""The digests of code that is the same for all models; `python -m tests.support.c_known` writes them."""

from __future__ import annotations

import hashlib
import json

from csqtool.csq import c_example, c_header
from csqtool.verifying.c_text import digest, items
from exporters.c.package import MODEL_H as PACKED_HEADER
from exporters.c.parts import INCLUDES, KERNELS, TRACE
from exporters.c.project import CMAKE, MAIN, MAKEFILE, ONE_CMAKE, ONE_MAKEFILE, UNQUANTIZED_MAIN
from exporters.c.text import kernel
from tests.support.commands import ROOT

KNOWN = ROOT / "csqtool" / "verifying" / "c_known.json"


def expected() -> dict[str, dict[str, str]]:
    """Return digests and what each is part of, by file."""
    before, stddef, after = INCLUDES.partition("#include <stddef.h>")
    inside, weights = after.rsplit("#include", 1)
    parts = [
        ("files", before), ("precision", "#include <float.h>"), ("includes", stddef + inside),
        ("files", "#include" + weights), ("trace", TRACE),
        *((name, kernel(name)) for name in KERNELS),
    ]  # fmt: skip
    mains = {
        f"{form}{kind}": text.replace('#include "model.h"', include)
        for kind, text in (("", MAIN), (", unquantized", UNQUANTIZED_MAIN))
        for form, include in both('#include "model.h"', '#define MODEL_IMPLEMENTATION\n#include "model.h"')
    }
    return {
        "model.c": {item.sha256: part for part, code in parts for item in items("model.c", code.encode())},
        "main.c": {digest(items("main.c", text.encode())): form for form, text in mains.items()},
        "Makefile": {hashlib.sha256(text.encode()).hexdigest(): form for form, text in both(MAKEFILE, ONE_MAKEFILE)},
        "packed csq.h": {hashlib.sha256(c_header()).hexdigest(): "packed"},
        "packed model.h": {hashlib.sha256(PACKED_HEADER).hexdigest(): "packed"},
        "packed example.c": {hashlib.sha256(c_example()).hexdigest(): "packed"},
        "CMakeLists.txt": {hashlib.sha256(text.encode()).hexdigest(): form for form, text in both(CMAKE, ONE_CMAKE)},
    }


def both(files: str, header: str) -> list[tuple[str, str]]:
    return [("files", files), ("header", header)]


def text() -> str:
    return json.dumps(expected(), indent=1) + "\n"


if __name__ == "__main__":
    KNOWN.write_text(text(), encoding="utf-8")
