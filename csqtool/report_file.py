"""Reading the reports that ``csqtool verify --json`` writes, which may have been edited, cut or made up since."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from csqtool.errors import FormatError
from csqtool.files import read_json


def read_report(path: Path) -> dict[str, Any]:
    """Return the report in `path`.

    Raises:
        InputError: the file is missing or not JSON.
        FormatError: it is no report.
    """
    return checked_report(read_json(path), where=str(path))


def checked_report(document: Any, *, where: str) -> dict[str, Any]:
    """Return `document` if it has the form of a report (``docs/verify-report.schema.json``).

    Raises:
        FormatError: it has not; the message says where it differs.
    """
    wrong = _wrong(document)
    if wrong is not None:
        raise FormatError(f"{where} is no report of csqtool verify --json: {wrong}")
    report: dict[str, Any] = document
    return report


def is_report(document: Any) -> bool:
    """Return whether `document` has the form of a report."""
    return _wrong(document) is None


def _wrong(document: Any) -> str | None:
    """Return what keeps `document` from being a report."""
    wrong = _misses(document, _REPORT)
    if wrong is not None:
        return wrong
    found = (
        (f"{part}[{index}]", _misses(item, form))
        for part, form in (("checks", _CHECK), ("layers", _FINDING))
        for index, item in enumerate(document[part])
    )
    return next((f"{where}: {wrong}" for where, wrong in found if wrong is not None), None)


def _misses(item: Any, form: dict[str, Callable[[Any], bool]]) -> str | None:
    if not isinstance(item, dict):
        return "no JSON object"
    return next((f"no proper {key!r}" for key, holds in form.items() if not holds(item.get(key))), None)


def _number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _count(value: Any) -> bool:
    return isinstance(value, int) and _number(value) and value >= 0


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _verdict(value: Any) -> bool:
    return isinstance(value, bool)


def _figures(value: Any) -> bool:
    return isinstance(value, dict) and all(figure is None or _number(figure) for figure in value.values())


def _items(value: Any) -> bool:
    return isinstance(value, list)


_REPORT: dict[str, Callable[[Any], bool]] = {
    "file": _text, "against": _text, "passed": _verdict, "size_bytes": _count, "samples": _count,
    "average_bit_width": _number, "checks": _items, "layers": _items,
    "tolerances": lambda value: value is None or _figures(value),
}  # fmt: skip
_CHECK: dict[str, Callable[[Any], bool]] = {
    "level": _text, "name": _text, "passed": _verdict, "detail": _text,
    "layer": lambda value: value is None or _text(value), "figures": _figures,
}  # fmt: skip
_FINDING: dict[str, Callable[[Any], bool]] = {
    "name": _text,
    "optimizations": _text,
    "passed": _verdict,
    "detail": _text,
    "figures": _figures,
}
