"""C source: a packed model as an array, the C99 reader of the `.csq` format and a program that uses both."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from csqtool import csq
from csqtool.errors import InputError
from csqtool.exporting import ExportReport
from csqtool.files import write_bytes
from csqtool.quantized_model import QuantizedModel

_BYTES_A_LINE = 20
MODEL_H = b"""/* The packed model, a .csq file in memory. */

#ifndef CSQMODEL_H
#define CSQMODEL_H

#include <stddef.h>
#include <stdint.h>

extern const uint8_t csq_model[];
extern const size_t csq_model_size;

#endif
"""


def export_package(model: QuantizedModel, path: Path, *, encoding: str) -> ExportReport:
    """Write the folder `path`: the reader `csq.h`, the packed model `model.c`, `model.h`, and the program `example.c`.

    Args:
        model: the finalized model.
        path: the folder to write or replace; see `write_folder` for what an interruption leaves.
        encoding: of the packed model, see `exporters.csq.EncodingOptions`.

    Returns:
        How to compile the example.

    Raises:
        ExportError: the `.csq` format cannot represent the model.
    """
    source = model_source(csq.pack(model, encoding=encoding))
    # The array comes last: after an interruption, the other files fit the old array and the new one.
    files = {"csq.h": csq.c_header(), "example.c": csq.c_example(), "model.h": MODEL_H, "model.c": source}
    write_folder(path, files)
    float32_bytes = len(model_source(bytes(_BYTES_A_LINE))) + csq.float32_size(model) * len("0x00,")
    return ExportReport(
        float32_bytes,
        [f"cc -std=c99 -O2 {path}/example.c {path}/model.c -o example; ./example prints a checksum of each tensor"],
    )


def model_source(content: bytes) -> bytes:
    """Return C source that defines `content` as an array."""
    lines = (
        ",".join(f"0x{byte:02x}" for byte in content[start : start + _BYTES_A_LINE])
        for start in range(0, len(content), _BYTES_A_LINE)
    )
    body = ",\n".join(lines)
    return (
        f'#include "model.h"\n\nconst size_t csq_model_size = {len(content)}u;\n'
        f"const uint8_t csq_model[{len(content)}] = {{\n{body}\n}};\n"
    ).encode()


def write_folder(path: Path, files: dict[str, bytes]) -> None:
    """Write a folder of files.

    A new folder appears complete, by one rename. In a folder that exists the files are replaced one by one, in
    the order given, each of them atomically; an interruption leaves the old last file or the new one.

    Raises:
        InputError: the folder cannot be written.
    """
    path = Path(path)
    if path.is_dir() and any(path.iterdir()):
        for name, content in files.items():
            write_bytes(path / name, content)
        return
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
        for name, content in files.items():
            write_bytes(temporary / name, content)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
