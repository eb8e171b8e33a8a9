"""Changes of files that repair checksums and lengths, so that what lies behind these checks is reached."""

from __future__ import annotations

import copy
import io
import json
import pickletools
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from google.protobuf.message import DecodeError

from tests.support.csq_files import with_right_checksums
from tests.support.csq_handmade import assemble, disassemble

NUMBERS = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 32767, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1)
VALUES: tuple[Any, ...] = (None, True, False, 0, -1, 1, 1.5, -0.0, 1e308, 2**31, 2**63, 2**64, 10**30, "", "x", "\0",
                           "../x", "/etc/passwd", "os:system", "\x1b[2J", "é" * 300, [], {}, [[]], {"": {}}, [0] * 50,
                           "11111111", "00000000", "float32", "int8", "nan", -(2**63))  # fmt: skip
BATCH_OF_FIELDS = 3


def changed_bytes(draw: random.Random, content: bytes) -> bytes:
    """Return bytes with some flipped, replaced, repeated, left out or exchanged."""
    data = bytearray(content or b"\0")
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at, size = draw.randrange(len(data)), draw.choice((1, 1, 2, 4, 8, 32))
        match draw.randrange(6):
            case 0:
                data[at] ^= 1 << draw.randrange(8)
            case 1:
                data[at] = draw.randrange(256)
            case 2:
                data[at : at + size] = (draw.choice(NUMBERS) % 256**size).to_bytes(size, "little")
            case 3:
                data[at:at] = data[at : at + size]
            case 4:
                del data[at : at + size]
            case _:
                other = draw.randrange(len(data))
                data[at : at + size] = data[other : other + size]
        data = data or bytearray(b"\0")
    return bytes(data)


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where the values of a document are."""
    found = [path] if path else []
    if not isinstance(document, dict | list):
        return found
    for key, value in document.items() if isinstance(document, dict) else enumerate(document):
        found += places(value, (*path, key))
    return found


def changed_document(draw: random.Random, document: Any) -> Any:
    """Return a JSON document with values replaced, exchanged, repeated or left out, at any depth."""
    document = copy.deepcopy(document)
    for _ in range(draw.choice((1, 1, 2, 3))):
        found = places(document)
        if not found:
            return copy.deepcopy(draw.choice(VALUES))
        *path, key = draw.choice(found)
        inside = document
        for step in path:
            inside = inside[step]
        value = inside[key]
        match draw.randrange(5):
            case 0:
                del inside[key]
            case 1 if isinstance(value, int | float):
                inside[key] = draw.choice((value + 1, value - 1, -value, value * 2, draw.choice(NUMBERS)))
            case 2 if isinstance(inside, list):
                inside.append(copy.deepcopy(value))
            case 2:
                inside[draw.choice(("", "x", key + "_", draw.choice(list(inside))))] = copy.deepcopy(value)
            case 3:
                other = document
                for step in draw.choice(found)[: draw.randrange(1, 4)]:
                    if isinstance(other, dict | list) and (isinstance(other, dict) == isinstance(step, str)):
                        known = step in other if isinstance(other, dict) else step < len(other)
                        other = other[step] if known else 0
                inside[key] = copy.deepcopy(other)
            case _:
                inside[key] = copy.deepcopy(draw.choice(VALUES))  # later changes change what is inside
    return document


def changed_json(draw: random.Random, content: bytes) -> bytes:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return changed_bytes(draw, content)  # it was changed before
    if draw.random() < 0.2:
        return changed_bytes(draw, content)
    return json.dumps(changed_document(draw, document)).encode()


def changed_lines(draw: random.Random, content: bytes) -> bytes:
    """Return JSON lines, one of them changed."""
    lines = content.splitlines(keepends=True)
    at = draw.randrange(len(lines))
    lines[at] = changed_json(draw, lines[at]).replace(b"\n", b" ") + b"\n"
    return b"".join(lines)


def changed_safetensors(draw: random.Random, content: bytes) -> bytes:
    """Return a safetensors file: its header, the document in it or its values changed, and its length as it is then."""
    size = int.from_bytes(content[:8], "little")
    header, values = json.loads(content[8 : 8 + size]), content[8 + size :]
    match draw.randrange(4):
        case 0:
            return changed_bytes(draw, content)
        case 1:
            header = changed_document(draw, header)
        case 2:
            values = changed_bytes(draw, values)[: len(values)].ljust(len(values), b"\0")
        case _:
            document = changed_document(draw, json.loads(header["__metadata__"]["csqtool"]))
            header["__metadata__"]["csqtool"] = json.dumps(document)
    packed = json.dumps(header).encode()
    packed += b" " * (-len(packed) % 8)
    return len(packed).to_bytes(8, "little") + packed + values


def changed_csq(draw: random.Random, content: bytes) -> bytes:
    """Return a `.csq` file with a changed row, stream, metadata or graph, all checksums and lengths right again."""
    if draw.random() < 0.3:
        return with_right_checksums(changed_bytes(draw, content))
    rows, metadata, digest = disassemble(content)
    version, _, _, _, graph_bytes, _, graph_size = struct.unpack_from("<IIIIIII", content, 8)
    table_bytes, metadata_bytes = struct.unpack_from("<II", content, 16)
    at = 88 - (-table_bytes // 8) * 8 - (-metadata_bytes // 8) * 8
    graph = content[at : at + graph_bytes]
    for _ in range(draw.choice((1, 1, 2))):
        row = draw.choice(rows)
        match draw.randrange(8):
            case 0 | 1 | 2:
                row["stored"] = changed_bytes(draw, row["stored"])
            case 3:
                shape = list(row["shape"]) or [1]
                where = draw.randrange(len(shape))
                shape[where] = draw.choice((shape[where] + 1, max(1, shape[where] - 1), draw.choice(NUMBERS) % 2**32))
                row["shape"] = tuple(shape)
            case 4:
                row[draw.choice(("encoding", "bits", "dtype"))] = draw.randrange(17)
            case 5:
                metadata = changed_json(draw, metadata)
            case 6 if graph:
                graph = zlib.compress(changed_bytes(draw, zlib.decompress(graph)))
                graph_size = len(zlib.decompress(graph))
            case _:
                rows = [one for one in rows if one is not row] + ([row, row] if draw.random() < 0.3 else [])
                rows = rows or [row]
    for row in rows:
        row["length"] = len(row["stored"])
    version = draw.choice((version, version, version, 2, 3))
    return assemble(rows, metadata, digest, version=version, graph_part=graph, graph_size=graph_size)


def changed_protobuf(draw: random.Random, content: bytes) -> bytes:
    """Return an ONNX file with fields of its messages changed at any depth; protobuf writes their lengths anew."""
    import onnx

    if draw.random() < 0.2:
        return changed_bytes(draw, content)
    proto = onnx.ModelProto.FromString(content)
    for _ in range(draw.choice((1, 1, 2, BATCH_OF_FIELDS))):
        message = draw.choice(messages(proto))
        try:
            change_field(draw, message)
        except (ValueError, TypeError, OverflowError, DecodeError):
            continue  # protobuf holds no such value
    return bytes(proto.SerializeToString())


def messages(proto: Any) -> list[Any]:
    found = [proto]
    for field, value in proto.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                found += messages(inner)
    return found


def change_field(draw: random.Random, message: Any) -> None:
    """Change, empty, repeat or set a field of a message."""
    present = [field for field, _ in message.ListFields()]
    field = draw.choice(present if present and draw.random() < 0.8 else list(message.DESCRIPTOR.fields))
    if draw.random() < 0.15:
        message.ClearField(field.name)
        return
    value = getattr(message, field.name)
    if field.is_repeated:
        if field.message_type is not None:
            if len(value) and draw.random() < 0.5:
                value.add().CopyFrom(draw.choice(list(value)))
            elif len(value):
                del value[draw.randrange(len(value))]
            return
        items = list(value)
        match draw.randrange(3):
            case 0 if items:
                del items[draw.randrange(len(items))]
            case 1 if items:
                items[draw.randrange(len(items))] = other_value(draw, field, draw.choice(items))
            case _:
                items.append(other_value(draw, field, draw.choice(items) if items else None))
        del value[:]
        value.extend(items)
    elif field.message_type is None:
        setattr(message, field.name, other_value(draw, field, value))


def other_value(draw: random.Random, field: Any, value: Any) -> Any:
    match field.cpp_type:
        case field.CPPTYPE_STRING if field.type == field.TYPE_BYTES:
            return changed_bytes(draw, bytes(value or b""))
        case field.CPPTYPE_STRING:
            text = str(value or "")
            return draw.choice((text + "x", text[:-1], "", "ai.onnx", "Loop", "Identity", "../x", "\x1b[2J"))
        case field.CPPTYPE_FLOAT | field.CPPTYPE_DOUBLE:
            return draw.choice((0.0, -1.0, float("nan"), float("inf"), 1e38, 1e-45))
        case field.CPPTYPE_ENUM:
            return draw.randrange(25)
    return draw.choice((int(value or 0) + 1, int(value or 0) - 1, -1, draw.choice(NUMBERS)))


def changed_pickle(draw: random.Random, content: bytes) -> bytes:
    """Return a pickle with operations left out, repeated or exchanged, or bytes changed."""
    if draw.random() < 0.4:
        return changed_bytes(draw, content)
    starts = [at for _, _, at in pickletools.genops(content)] + [len(content)]
    parts = [content[a:b] for a, b in pairwise(starts)]
    at, other = draw.randrange(len(parts)), draw.randrange(len(parts))
    match draw.randrange(4):
        case 0:
            del parts[at]
        case 1:
            parts.insert(at, parts[other])
        case 2:
            parts[at], parts[other] = parts[other], parts[at]
        case _:
            parts[at] = changed_bytes(draw, parts[at])
    return b"".join(parts)


def changed_checkpoint(draw: random.Random, content: bytes) -> bytes:
    """Return a torch file with a changed record; the archive's checksums and offsets are right."""
    if draw.random() < 0.1:
        return changed_bytes(draw, content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    name = draw.choice([name for name in records if name.endswith("data.pkl")] * 3 + list(records))
    if draw.random() < 0.05:
        del records[name]
    else:
        change: Callable[[random.Random, bytes], bytes] = changed_pickle if name.endswith(".pkl") else changed_bytes
        records[name] = change(draw, records[name])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for one, data in records.items():
            archive.writestr(one, data)
    return buffer.getvalue()
