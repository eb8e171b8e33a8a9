"""Messages between a process and its sandbox: JSON, and the bytes of arrays after it. Never a pickle."""

from __future__ import annotations

import json
from math import prod
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

HEAD_BYTES = 8


def write(stream: IO[bytes], message: Any) -> None:
    """Write a message of plain values, bytes and arrays.

    Raises:
        TypeError: something else is in it.
    """
    blobs: list[memoryview | bytes] = []
    text = json.dumps({"message": _packed(message, blobs), "sizes": [len(b) for b in blobs]}).encode()
    stream.write(len(text).to_bytes(HEAD_BYTES, "little"))
    stream.write(text)
    for blob in blobs:
        stream.write(blob)
    stream.flush()


def read(stream: IO[bytes], most_bytes: int) -> Any:
    """Return the next message.

    Raises:
        EOFError: the other side has gone.
        ValueError: it is no message, or one of more than `most_bytes`.
    """
    size = int.from_bytes(_exactly(stream, HEAD_BYTES), "little")
    if size > most_bytes:
        raise ValueError("the message is too long")
    document = json.loads(_exactly(stream, size))
    if sum(document["sizes"]) > most_bytes:
        raise ValueError("the message is too long")
    return _unpacked(document["message"], [_exactly(stream, n) for n in document["sizes"]])


def _exactly(stream: IO[bytes], size: int) -> bytes:
    parts = []
    while size:
        part = stream.read(min(size, 2**24))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _packed(value: Any, blobs: list[memoryview | bytes]) -> Any:
    if isinstance(value, bytes):
        blobs.append(value)
        return {"bytes": len(blobs) - 1}
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject or value.dtype.kind in "US":
            raise TypeError("an array of objects or texts cannot be sent")
        blobs.append(np.ascontiguousarray(value).tobytes())
        return {"array": len(blobs) - 1, "dtype": value.dtype.name, "shape": list(value.shape)}
    if isinstance(value, dict):
        return {"object": [[key, _packed(item, blobs)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_packed(item, blobs) for item in value]
    return value


def _unpacked(value: Any, blobs: list[bytes]) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, blobs) for item in value]
    if not isinstance(value, dict):
        return value
    if "object" in value:
        return {key: _unpacked(item, blobs) for key, item in value["object"]}
    if "bytes" in value:
        return blobs[value["bytes"]]
    return _array(blobs[value["array"]], value["dtype"], tuple(value["shape"]))


def _array(content: bytes, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        kind = np.dtype(dtype)
    except TypeError:
        import ml_dtypes  # noqa: F401 - numpy knows int4, bfloat16 and so on by their names then

        try:
            kind = np.dtype(dtype)
        except TypeError as error:
            raise ValueError(f"an array of an unknown type {dtype!r}") from error
    if min(shape, default=0) < 0 or prod(shape) * kind.itemsize != len(content):
        raise ValueError("an array has another size than it says")
    return np.frombuffer(bytearray(content), kind).reshape(shape)
