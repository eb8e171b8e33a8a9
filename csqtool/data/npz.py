"""Reads the arrays of an ``.npz`` file: checks what a member declares before any memory is taken for it."""

from __future__ import annotations

import re
import zipfile
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from csqtool.errors import DataError

DEFLATE_LIMIT = 1032  # bytes that one byte of a deflated stream can become, at most
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what numpy writes


# What a data file may hold; anything else in the archive is not read.
MEMBERS = re.compile(r"(?:[xy]_(?:train|test)|x_(?:train|test)\.\w+|mean|std)")


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an ``.npz`` file that are data, by name: ``x_train``, ``x_train.NAME``, ``mean`` and so on.

    Pickled objects are never read. An array takes no more memory than its member has bytes, and a member no more
    than its compressed bytes can become.

    Raises:
        DataError: it is no such file, is damaged, or an array holds anything but numbers.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file")
    arrays: dict[str, NDArray[Any]] = {}
    reading = ""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            for name, member in members.items():
                if MEMBERS.fullmatch(name):
                    reading = f"{name}: "
                    arrays[name] = _read(archive, member)
    # zipfile, zlib and numpy raise a dozen errors of their own on damaged files.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is not an .npz file of plain arrays, or is damaged: {reading}{reason:.200}") from error
    return arrays


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    if info.compress_type not in METHODS:
        raise ValueError(f"it is compressed with method {info.compress_type}, numpy uses 0 and 8")
    expansion = 1 if info.compress_type == zipfile.ZIP_STORED else DEFLATE_LIMIT
    if info.file_size > expansion * info.compress_size:
        raise ValueError(f"it says it has {info.file_size} bytes, which {info.compress_size} cannot hold")
    with archive.open(info) as member:
        shape, dtype, header_bytes = _header(member)
    if dtype.kind not in "fiub":
        raise ValueError(f"it holds {dtype}, not numbers")
    wanted = prod(shape) * dtype.itemsize + header_bytes
    if min(shape, default=0) < 0 or wanted != info.file_size:
        raise ValueError(f"it has {info.file_size} bytes, an array {dtype}{list(shape)} takes {wanted}")
    with archive.open(info) as member:
        array: NDArray[Any] = npy.read_array(member, allow_pickle=False)
        if member.read(1):  # reaching the end checks the CRC
            raise ValueError("it is longer than its header says")
    return array


def _header(member: BinaryIO | Any) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return shape, dtype and the length in bytes of a header."""
    version = npy.read_magic(member)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"an array of numbers has version 1.0 or 2.0, not {version}")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(member)
    return shape, dtype, member.tell()
