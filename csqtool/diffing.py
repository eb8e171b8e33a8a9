"""What changed between two finalized models, or between two reports of `verify`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from csqtool import documents
from csqtool.errors import FormatError
from csqtool.files import read_bytes
from csqtool.finalized_file import parse_finalized
from csqtool.quantized_model import QuantizedModel
from csqtool.verifying.findings import Check, Figures, LayerFinding, VerifyReport
from csqtool.verifying.report_file import parse_report


@dataclass(frozen=True)
class Change:
    """One difference.

    Attributes:
        where: a layer, an activation quantizer, a tensor, a check; ``model`` or ``file`` for the whole.
        what: the property that differs.
        before, after: its values; None if one side does not have it.
    """

    where: str
    what: str
    before: Any
    after: Any

    def to_json(self) -> dict[str, Any]:
        """Return the change as a JSON document."""
        return asdict(self)


def diff(a: Path, b: Path) -> list[Change]:
    """Return what changed from `a` to `b`; empty if nothing did.

    Args:
        a: a finalized model (``.safetensors``), or a report of ``verify --json``.
        b: another of its kind.

    Raises:
        InputError: a file is missing or of neither kind.
        FormatError: they are of different kinds.
    """
    kinds = [_read(path) for path in (a, b)]
    before, after = kinds
    if isinstance(before, QuantizedModel) and isinstance(after, QuantizedModel):
        return _models(before, after)
    if isinstance(before, VerifyReport) and isinstance(after, VerifyReport):
        return _reports(before, after)
    words = ["a finalized model" if isinstance(kind, QuantizedModel) else "a report" for kind in kinds]
    raise FormatError(f"{a} is {words[0]}, {b} is {words[1]}: compare two of a kind")


def _read(path: Path) -> QuantizedModel | VerifyReport:
    content = read_bytes(path)
    return (parse_report if content[:1] == b"{" else parse_finalized)(content, where=str(path))


def _models(a: QuantizedModel, b: QuantizedModel) -> list[Change]:
    changes: list[Change] = []

    def note(where: str, what: str, before: Any, after: Any) -> None:
        if before != after:
            changes.append(Change(where, what, before, after))

    layers = [{layer.name: layer for layer in model.layers} for model in (a, b)]
    for name in dict.fromkeys([*layers[0], *layers[1]]):
        one, other = (part.get(name) for part in layers)
        if one is None or other is None:
            note(name, "layer", one and "there", other and "there")
            continue
        for what in ("shape", "precision", "mask", "bit_width", "input_quantizer", "batch_norm"):
            note(name, what, *(_plain(getattr(layer, what)) for layer in (one, other)))
        note(name, "scale", float(one.scale), float(other.scale))
        if one.shape == other.shape and not np.array_equal(one.q, other.q):
            distance = np.abs(one.q.astype(np.int32) - other.q)
            changed, largest = int((distance > 0).sum()), int(distance.max())
            changes.append(Change(name, "integers", None, f"{changed} of {one.elements} changed, by {largest} at most"))
    quantizers = [{q.name: q for q in model.activations} for model in (a, b)]
    for name in dict.fromkeys([*quantizers[0], *quantizers[1]]):
        first, second = (part.get(name) for part in quantizers)
        for what in ("bits", "zero_point", "scale"):
            note(name, what, *(None if q is None else _plain(getattr(q, what)) for q in (first, second)))
    for name in sorted(a.tensors.keys() | b.tensors.keys()):
        values = [model.tensors.get(name) for model in (a, b)]
        if values[0] is None or values[1] is None:
            note(name, "tensor", *(None if v is None else "there" for v in values))
        elif values[0].shape != values[1].shape or values[0].tobytes() != values[1].tobytes():
            changes.append(Change(name, "tensor", None, "other values"))
    for what in ("average_precision", "average_bit_width"):
        note("model", what, *(round(getattr(model, what), 6) for model in (a, b)))
    note("model", "packed integer bytes", *(sum(x.packed_bytes for x in model.layers) for model in (a, b)))
    note("model", "tied weights", *(dict(model.tied) for model in (a, b)))
    infos = [_leaves(model.info.document) for model in (a, b)]
    for name in dict.fromkeys([*infos[0], *infos[1]]):
        what = str(infos[1].get("metrics.name", "metric")) if name == "metrics.finalized" else name
        note("model", what, *(info.get(name) for info in infos))
    return changes


def _leaves(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values in nested objects, by their dotted names, in the document's order."""
    found: dict[str, Any] = {}
    waiting: list[tuple[str, Any]] = [("", document)]  # no recursion: objects in files can be nested deeply
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(f"{name}.{key}" if name else key, inner) for key, inner in reversed(list(value.items()))]
        else:
            found[name] = value
    return found


def _reports(a: VerifyReport, b: VerifyReport) -> list[Change]:
    changes = [
        Change("file", what, getattr(a, what), getattr(b, what))
        for what in ("passed", "size_bytes", "average_bit_width", "samples") if getattr(a, what) != getattr(b, what)
    ]  # fmt: skip
    changes += _figures("tolerances", *(documents.plain(report.tolerances) for report in (a, b)))
    changes += _verdicts(*(_numbered(r.checks, ("level", "name", "layer")) for r in (a, b)))
    changes += _verdicts(*(_numbered(r.layers, ("name", "optimizations")) for r in (a, b)))
    return changes


def _verdicts(a: Mapping[str, Check | LayerFinding], b: Mapping[str, Check | LayerFinding]) -> list[Change]:
    """Return the verdicts and figures that differ."""
    changes: list[Change] = []
    for where in dict.fromkeys([*a, *b]):
        one, other = a.get(where), b.get(where)
        verdicts = [None if item is None else "ok" if item.passed else "FAIL" for item in (one, other)]
        if verdicts[0] != verdicts[1]:
            changes.append(Change(where, "verdict", *verdicts))
        if one is not None and other is not None:
            changes += _figures(where, one.figures, other.figures)
    return changes


def _numbered(items: Sequence[Check | LayerFinding], keys: tuple[str, ...]) -> dict[str, Check | LayerFinding]:
    """Return the items by their names; those of one name are numbered."""
    found: dict[str, Check | LayerFinding] = {}
    seen: Counter[str] = Counter()
    for item in items:
        name = ": ".join(str(getattr(item, key)) for key in keys if getattr(item, key))
        seen[name] += 1
        found[name if seen[name] == 1 else f"{name} ({seen[name]})"] = item
    return found


def _figures(where: str, a: Figures, b: Figures) -> list[Change]:
    """Return the figures that differ, in the document's order; None for a figure that one side does not have."""
    return [
        Change(where, what, a.get(what), b.get(what))
        for what in dict.fromkeys([*a, *b]) if what not in a or what not in b or a[what] != b[what]
    ]  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return float(value) if isinstance(value, np.floating) else value
