"""Runs the C reader of the `.csq` format on a file, if a C compiler is installed."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from csqtool import sandbox

COMPILERS = ("cc", "gcc", "clang")
SECONDS = 240  # below the limit of the sandbox; it decodes 100 MB a second
_PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include "csq.h"

int main(int argc, char **argv) {
    static csq_decoder decoder;
    csq_file file;
    csq_tensor tensor;
    csq_status status;
    FILE *stream = argc == 2 ? fopen(argv[1], "rb") : NULL;
    uint8_t *data;
    long size;
    if (!stream || fseek(stream, 0, SEEK_END) || (size = ftell(stream)) < 0) return 2;
    rewind(stream);
    data = malloc(size ? (size_t)size : 1);
    if (!data || fread(data, 1, (size_t)size, stream) != (size_t)size) return 2;
    status = csq_open(&file, data, (size_t)size);
    if (status == CSQ_OK) status = csq_first(&file, &tensor);
    for (; status == CSQ_OK; status = csq_next(&file, &tensor)) {
        uint32_t crc;
        status = csq_checksum(&tensor, &decoder, &crc);
        if (status != CSQ_OK) break;
        printf("%08lx %s\n", (unsigned long)crc, tensor.name);
    }
    if (status != CSQ_END) fprintf(stderr, "%s", csq_message(status));
    return status != CSQ_END;
}
"""


def c_checksums(content: bytes, header: bytes) -> dict[str, int] | None:
    """Return the CRC-32 of each tensor's decoded elements, little-endian, as the C reader computes it.

    Args:
        content: a `.csq` file.
        header: the reader, ``csq.h``.

    Returns:
        The checksums by name; None if no C compiler is installed.

    Raises:
        RuntimeError: the reader does not compile, or rejects the file; the message is the reader's.
    """
    program = _compiled(header)
    if program is None:
        return None
    text: str = sandbox.call("csqtool.verifying.csq_c_reader:run_reader", program=str(program), content=content)
    lines = (line.split(" ", 1) for line in text.splitlines())
    return {name: int(crc, 16) for crc, name in lines}


def run_reader(program: str, content: bytes) -> str:
    """Return what the compiled reader prints about a file; it is called in the sandbox, whose limits it inherits.

    Raises:
        RuntimeError: it rejects the file, or crashes.
    """
    path = Path("model.csq")
    path.write_bytes(content)
    try:
        done = subprocess.run(
            [program, str(path)], stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"it took longer than {SECONDS} seconds, and was ended") from error
    if done.returncode:
        raise RuntimeError(done.stderr.decode(errors="replace") or f"it ended with {done.returncode}")
    return done.stdout.decode()


@functools.cache
def _compiled(header: bytes) -> Path | None:
    """Return the compiled reader, which is removed when this process ends."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return None
    here = Path(tempfile.mkdtemp(prefix="csqtool-"))
    atexit.register(shutil.rmtree, here, ignore_errors=True)
    (here / "csq.h").write_bytes(header)
    (here / "reader.c").write_text(_PROGRAM)
    program = here / ("reader.exe" if os.name == "nt" else "reader")
    command = [compiler, "-std=c99", "-O1", str(here / "reader.c"), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        first = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise RuntimeError(f"{compiler} does not compile it: {first}")
    return program
