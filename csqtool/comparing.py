"""Comparison of methods at one budget: a sweep whose results all end in verified ONNX and ``.csq`` files.

Beside what a sweep's folder holds (`csqtool.sweeping`), there are

======================== ============================================================================================
``files/NAME.onnx``      the exported network of every finished run
``verified/NAME.json``   sizes of its files, and whether both compute the same as PyTorch; not repeated while the
                         finalized model stays the same
``comparison.md``        the table
======================== ============================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import msgspec

from csqtool import documents
from csqtool.data import DataSource
from csqtool.documents import Count
from csqtool.errors import CheckFailed
from csqtool.exporting import export
from csqtool.files import sha256, write_bytes, write_json
from csqtool.progress import Progress
from csqtool.searching.config import epochs_at_scheme
from csqtool.searching.options import FINETUNE_METHODS, method_kind
from csqtool.sweeping.result import SweepResult, SweepRow
from csqtool.verifying.verification import verify_file

COLUMNS = ("method", "kind", "data needed", "metric", "lowest … highest", "planes", "bits", ".csq bytes", ".onnx bytes",
           "seconds", "verified")  # fmt: skip


class Shipped(msgspec.Struct, frozen=True):
    """``verified/NAME.json``: the files of a run.

    Attributes:
        model: SHA-256 of the finalized model.
        onnx_bytes: of the ONNX file.
        failed: names of the files of which a check does not hold.
    """

    model: str
    onnx_bytes: Count
    failed: list[str]


@dataclass(frozen=True)
class Comparison:
    """Several methods at one budget.

    Attributes:
        sweep: their runs.
        shipped: the files of each finished run, by the run's name.
    """

    sweep: SweepResult
    shipped: Mapping[str, Shipped]

    @property
    def passed(self) -> bool:
        """Whether the files of all finished runs compute the same as PyTorch."""
        return not any(one.failed for one in self.shipped.values())

    def table(self) -> str:
        """Return a Markdown table, a line for each method; figures are means over seeds, sizes the largest."""
        lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        groups: dict[str, list[SweepRow]] = {}
        for row in self.sweep.rows:
            groups.setdefault(row.method, []).append(row)
        lines += [f"| {method} | {' | '.join(self._cells(rows))} |" for method, rows in groups.items()]
        return "\n".join(lines) + "\n"

    def _cells(self, rows: Sequence[SweepRow]) -> list[str]:
        kind, data = kind_and_data(rows[0].settings)
        done = [(row.outcome, row.outcome.summary) for row in rows if row.outcome and row.outcome.summary]
        if not done:
            problem = next((row.outcome.problem for row in rows if row.outcome), None)
            return [kind, data, f"not done: {problem}" if problem else "not finished", *[""] * 7]
        metrics = [outcome.metric for outcome, _ in done]
        files = [self.shipped[row.name] for row in rows if row.name in self.shipped]
        failed = [name for one in files for name in one.failed]
        return [
            kind, data, f"{mean(metrics):.4f}", f"{min(metrics):.4f} … {max(metrics):.4f}" if len(done) > 1 else "",
            f"{mean(s.average_precision for _, s in done):.3f}", f"{mean(s.average_bit_width for _, s in done):.3f}",
            f"{max(outcome.bytes for outcome, _ in done):,}", f"{max((one.onnx_bytes for one in files), default=0):,}",
            f"{mean(s.seconds for _, s in done):.0f}", f"failed: {', '.join(failed)}" if failed else "yes",
        ]  # fmt: skip


def kind_and_data(settings: Mapping[str, Any]) -> tuple[str, str]:
    """Return what a run's method is, and what data it needs: an allocator's scheme is trained by another method."""
    kind = method_kind(settings["method"])
    if kind.allocates and epochs_at_scheme(settings):
        trainer = settings.get("finetune_with", "lsq")
        data = method_kind(FINETUNE_METHODS[trainer]).data
        return f"allocator, {trainer}", kind.data if kind.data == data else f"{kind.data}; training: {data}"
    return kind.role, kind.data


def ship(found: SweepResult, *, model: Any, data: DataSource | None, progress: Progress) -> Comparison:
    """Export and verify the results of a sweep that are finished, and write the table.

    Args:
        found: the sweep.
        model: the module; None takes the factory that the runs record.
        data: test data; None takes the source that the runs record.
        progress: is told of every file.

    Raises:
        InputError: a network cannot be exported.
    """
    shipped = {}
    for number, row in enumerate(found.finished, 1):
        shipped[row.name] = _shipped(found.folder, row, model=model, data=data)
        progress.step("verified", number, len(found.finished), {})
    comparison = Comparison(found, shipped)
    write_bytes(found.folder / "comparison.md", comparison.table().encode())
    return comparison


def _shipped(folder: Path, row: SweepRow, *, model: Any, data: DataSource | None) -> Shipped:
    record, onnx, digest = folder / "verified" / f"{row.name}.json", row.model.with_suffix(".onnx"), sha256(row.model)
    if record.is_file() and onnx.is_file():
        before = documents.read(Shipped, record)
        if before.model == digest:
            return before
    exported = export(row.model, onnx, format="onnx", model=model)
    failed = [file.name for file in (onnx, row.packed)
              if not verify_file(file, row.model, model=model, data=data).passed]  # fmt: skip
    done = Shipped(digest, exported.size_bytes, failed)
    write_json(record, documents.plain(done))
    return done


def check_passed(comparison: Comparison) -> None:
    """Check that all files compute the same as PyTorch.

    Raises:
        CheckFailed: one does not.
    """
    failed = [name for one in comparison.shipped.values() for name in one.failed]
    if failed:
        raise CheckFailed(f"{len(failed)} files do not compute the same as PyTorch: {', '.join(failed)}; "
                          "csqtool verify FILE --against MODEL.safetensors says where")  # fmt: skip
