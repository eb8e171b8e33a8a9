"""Every field of a file, and hostile values for it: lengths and checksums are right again."""

from __future__ import annotations

import copy
import io
import json
import os
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import tomli_w

from tests.support.csq_handmade import assemble, disassemble

Place = tuple[Any, ...]
KEY, NEW = "the key at", "a new key in"
DEEP: Any = "x"
for _ in range(200):
    DEEP = [DEEP]


class Script:
    """What runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


# `{outside}` is a folder beside the project, in which outside.py leaves a file when it is imported.
FACTORIES = ("os:system", "builtins:exec", "subprocess:run", "../outside/outside.py:net", "{outside}/outside.py:net",
             "https://example.invalid/net.py:net", "torch.hub:load", "timm:../../outside", "transformers:{outside}",
             "net.py:nn", "net.py:__builtins__")  # fmt: skip
PATHS = ("../outside/x", "/etc/passwd", "{outside}/x", "~/x", "//host.invalid/share/x", "npz:../outside/x.npz",
         "imagefolder:{outside}", "cifar10:https://example.invalid", "file:///etc/passwd", "C:\\x", "..",
         "/")  # fmt: skip
TEXTS = ("\x1b[2J\x1b]0;x\x07", "a\r\n::error::x", "##[error]x", "\u202etxt", "\0", "$(touch ran)",
         "`touch ran`; touch ran", "__import__('os').system('touch ran')", "<script>alert(1)</script>",
         "{{7*7}}{%x%}", "%s%n%(x)s", "x" * 100_000, "\ud800", "")  # fmt: skip
NUMBERS = (0, -1, 2**31, 2**62, -(2**63), 2**64, 10**400, 1e308, -1e308, 5e-324, float("nan"), float("inf"))
OTHERS: tuple[Any, ...] = (None, True, [], {}, DEEP, {"x": {"x": None}}, ["x"] * 3000, list(range(3000)))
FAMILIES: tuple[tuple[Any, ...], ...] = (FACTORIES, PATHS, TEXTS, NUMBERS, OTHERS)


def named(value: Any, outside: str) -> Any:
    """Return a value with the folder beside the project in it."""
    return value.replace("{outside}", outside) if isinstance(value, str) else value


@dataclass(frozen=True)
class Codec:
    """How a kind of file is read and written.

    Attributes:
        load: returns the content as dicts, lists and plain values.
        dump: the inverse; raises something where the format has no such value.
        more: values of this format alone.
    """

    load: Callable[[bytes], Any]
    dump: Callable[[Any], bytes]
    more: tuple[Any, ...] = ()

    def places(self, content: bytes) -> list[Place]:
        """Return where values are, keys may be renamed, and keys may be added; of a list, in its first two items."""
        return list(_places(self.load(content)))

    def changed(self, content: bytes, place: Place, value: Any) -> bytes | None:
        """Return the file with another value at a place; None where the format has no such value."""
        document = self.load(content)
        holder = [document]
        what, path = (place[0], (0, *place[1:])) if place and place[0] in (KEY, NEW) else (None, (0, *place))
        inside: Any = holder
        for step in path[:-1]:
            inside = inside[step]
        if what is None:
            inside[path[-1]] = copy.deepcopy(value) if isinstance(value, list | dict) else value
        elif not isinstance(value, str):
            return None
        elif what == KEY:
            inside[value] = inside.pop(path[-1])
        else:
            inside[path[-1]][value] = value
        try:
            return self.dump(holder[0])
        except Exception:
            return None


def _places(document: Any, path: Place = ()) -> Iterator[Place]:
    yield path
    if isinstance(document, dict):
        yield (NEW, *path)
        for key, value in document.items():
            yield (KEY, *path, key)
            yield from _places(value, (*path, key))
    elif isinstance(document, list):
        for index, value in enumerate(document[:2]):
            yield from _places(value, (*path, index))


def _json(document: Any) -> bytes:
    return json.dumps(document).encode()


def _lines(document: Any) -> bytes:
    if not isinstance(document, list):
        return _json(document) + b"\n"
    return b"".join(_json(one) + b"\n" for one in document)


def _from_safetensors(content: bytes) -> Any:
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    if "csqtool" in header.get("__metadata__", {}):
        header["__metadata__"]["csqtool"] = json.loads(header["__metadata__"]["csqtool"])
    return {"header": header, "values": content[8 + size :]}


def _to_safetensors(document: Any) -> bytes:
    header, values = copy.copy(document["header"]), document["values"]
    if isinstance(header, dict) and isinstance(header.get("__metadata__"), dict):
        metadata = dict(header["__metadata__"])
        if "csqtool" in metadata and not isinstance(metadata["csqtool"], str):
            metadata["csqtool"] = json.dumps(metadata["csqtool"])
        header["__metadata__"] = metadata
    packed = json.dumps(header).encode()
    packed += b" " * (-len(packed) % 8)
    return len(packed).to_bytes(8, "little") + packed + values


def _from_csq(content: bytes) -> Any:
    rows, metadata, digest = disassemble(content)
    return {"rows": rows, "metadata": json.loads(metadata), "digest": digest}


def _to_csq(document: Any) -> bytes:
    rows = [{**row, "name": row["name"].encode() if isinstance(row["name"], str) else row["name"]}
            for row in document["rows"]]  # fmt: skip
    return assemble(rows, _json(document["metadata"]), document["digest"])


def _from_torch(content: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(content), weights_only=True)


def _to_torch(document: Any) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(document, buffer)
    return buffer.getvalue()


def _from_npz(content: bytes) -> Any:
    import numpy as np

    return dict(np.load(io.BytesIO(content)))


def _to_npz(document: Any) -> bytes:
    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, **{key: np.asarray(value, object if isinstance(value, Script) else None)
                        for key, value in document.items()})  # fmt: skip
    return buffer.getvalue()


JSON = Codec(json.loads, _json)
LINES = Codec(lambda content: [json.loads(line) for line in content.splitlines()], _lines)
TOML = Codec(lambda content: tomllib.loads(content.decode()), lambda document: tomli_w.dumps(document).encode())
SAFETENSORS = Codec(_from_safetensors, _to_safetensors)
CSQ = Codec(_from_csq, _to_csq)
TORCH = Codec(_from_torch, _to_torch, (Script(),))
NPZ = Codec(_from_npz, _to_npz, (Script(),))


class Onnx(Codec):
    """The fields of an ONNX file's messages, also those that are not set."""

    def __init__(self) -> None:
        super().__init__(lambda content: content, lambda content: content)

    def places(self, content: bytes) -> list[Place]:
        """Return every field of texts and numbers; of repeated messages, those of the first two."""
        return list(self._fields(_proto(content), ()))

    def _fields(self, message: Any, path: Place) -> Iterator[Place]:
        for one in message.DESCRIPTOR.fields:
            value = getattr(message, one.name)
            if one.message_type is None:
                yield (*path, one.name)
            elif one.is_repeated:
                for index, inner in enumerate(value[: 10 if one.name == "metadata_props" else 2]):
                    yield from self._fields(inner, (*path, (one.name, index)))
            elif message.HasField(one.name):
                yield from self._fields(value, (*path, (one.name, None)))

    def changed(self, content: bytes, place: Place, value: Any) -> bytes | None:
        """Return the file with another value at a place; None where the field takes none of this type."""
        proto = message = _proto(content)
        for name, index in place[:-1]:
            message = getattr(message, name) if index is None else getattr(message, name)[index]
        one = message.DESCRIPTOR.fields_by_name[place[-1]]
        try:
            value = value.encode() if one.type == one.TYPE_BYTES else value
            if one.is_repeated:
                getattr(message, one.name)[:] = [value]
            else:
                setattr(message, one.name, value)
            return bytes(proto.SerializeToString())
        except (ValueError, TypeError, OverflowError, AttributeError):
            return None


def _proto(content: bytes) -> Any:
    import onnx

    return onnx.ModelProto.FromString(content)


ONNX = Onnx()
