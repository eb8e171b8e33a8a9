"""JSON and TOML documents, read into typed records by one mechanism, with messages that say what to change.

A record is a ``msgspec.Struct``; its annotations are the document's schema. `decode` and `convert` check a document
against it and turn msgspec's messages into the errors of csqtool:

    >>> import msgspec
    >>> class Point(msgspec.Struct, forbid_unknown_fields=True):
    ...     x: int
    ...     y: int = 0
    >>> decode(Point, b'{"x": 1}', where="point.json")
    Point(x=1, y=0)
    >>> decode(Point, b'{"x": "1"}', where="point.json")
    Traceback (most recent call last):
        ...
    csqtool.errors.FormatError: point.json: x: expected int, got str
    >>> decode(Point, b'{"z": 1, "x": 1}', where="point.json")
    Traceback (most recent call last):
        ...
    csqtool.errors.FormatError: point.json: unknown key 'z'; known: x, y
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from csqtool.errors import FormatError, InputError, nearest
from csqtool.files import read_bytes

T = TypeVar("T")
# Bounded, so that arithmetic with numbers from files cannot overflow a float.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]

_PLACE = re.compile(r" - at `(?:key in )?\$(?P<path>.*)`$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*)`$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<key>.*)`$", re.DOTALL)
_CHOICE = re.compile(r"Invalid enum value '(?P<value>.*)'$", re.DOTALL)
_STEP = re.compile(r"\.([^.\[\]]+)|\[[^\]]*\]")


def decode(
    kind: type[T], content: bytes | str, *, where: str, what: str | None = None, error: type[InputError] = FormatError
) -> T:
    """Return the record in a JSON text.

    Args:
        kind: the record's type, or any type that msgspec knows, such as ``list[Point]``.
        content: JSON in UTF-8.
        where: the file's name, for messages.
        what: what the file should be, such as ``a report of csqtool verify --json``, for messages.
        error: what is raised.

    Raises:
        InputError: `error`: the text is not JSON, or not such a record; the message names the key.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as problem:
        raise error(f"{_head(where, what)}: {explained(problem, kind)}") from problem
    except RecursionError as problem:
        raise error(f"{where} is not valid JSON: it is nested too deep") from problem
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise error(f"{where} is not valid JSON: {problem}") from problem


def convert(
    kind: type[T], document: Any, *, where: str, what: str | None = None, error: type[InputError] = FormatError
) -> T:
    """Return the record in a document of plain Python values, as TOML and keyword arguments give them.

    Raises:
        InputError: `error`, as `decode`.
    """
    try:
        return msgspec.convert(document, type=kind)
    except (msgspec.ValidationError, RecursionError) as problem:
        raise error(f"{_head(where, what)}: {explained(problem, kind)}") from problem


def read(kind: type[T], path: Path, *, what: str | None = None) -> T:
    """Return the record in a JSON file; `what` it should be is for messages.

    Raises:
        InputError: the file is missing.
        FormatError: it is not JSON, or not such a record.
    """
    return decode(kind, read_bytes(path), where=str(path), what=what)


def plain(record: Any) -> Any:
    """Return a record as plain dicts, lists, texts and numbers, as JSON has them."""
    return msgspec.to_builtins(record, str_keys=True)


def _head(where: str, what: str | None) -> str:
    return where if what is None else f"{where} is not {what}"


def explained(problem: Exception, kind: Any) -> str:
    """Return msgspec's message in csqtool's form: the place, what is wrong there, and the nearest known key."""
    text = str(problem)
    path = ""
    if place := _PLACE.search(text):
        path, text = place["path"].lstrip("."), text[: place.start()]
    if unknown := _UNKNOWN.match(text):
        text = f"unknown key {unknown['key']!r}; {nearest(unknown['key'], _keys_at(kind, path))}"
    elif missing := _MISSING.match(text):
        text = f"{missing['key']} is missing"
    elif choice := _CHOICE.match(text):
        text = f"unknown value {choice['value']!r}; {nearest(choice['value'], _choices(_type_at(kind, path)))}"
    else:
        text = text[:1].lower() + text[1:].replace("`", "")
    return f"{path}: {text}" if path else text


def _keys_at(kind: Any, path: str) -> Iterable[str]:
    """Return the keys that are known at a path such as ``checks[0].figures`` inside a record."""
    return [field.encode_name for part in _parts(_type_at(kind, path)) for field in getattr(part, "fields", ())]


def _choices(info: Any) -> Iterable[str]:
    """Return the values that a type with a fixed choice of texts allows."""
    return [str(value) for part in _parts(info) for value in getattr(part, "values", ())]


def _type_at(kind: Any, path: str) -> Any:
    """Return msgspec's description of the type at a path inside a record."""
    found = msgspec.inspect.type_info(kind)
    for step in _STEP.finditer(f".{path}" if path and not path.startswith("[") else path):
        found = _inner(found, step[1])
    return found


def _inner(info: Any, key: str | None) -> Any:
    """Return the type of a record's field, or of a container's items where `key` is None."""
    for part in _parts(info):
        if key is None and (item := getattr(part, "item_type", getattr(part, "value_type", None))) is not None:
            return item
        for field in getattr(part, "fields", ()):
            if field.encode_name == key:
                return field.type
    return info


def _parts(info: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    return tuple(getattr(info, "types", (info,)))
