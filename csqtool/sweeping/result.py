"""The figures of a sweep: a record for each run, the table, the front and the smallest file within a limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import msgspec

from csqtool.documents import Count
from csqtool.errors import InputError
from csqtool.searching.records import Measured, Summary


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """``results/NAME.json``: how a run ended.

    Attributes:
        problem: why it could not be done; None if it was.
        summary: the result of the search.
        metric: of the finalized model.
        bytes: of the packed file.
    """

    problem: str | None = None
    summary: Summary | None = None
    metric: Measured = 0.0
    bytes: Count = 0


@dataclass(frozen=True)
class SweepRow:
    """One run.

    Attributes:
        name: of the run.
        settings: of its search.
        outcome: how it ended; None if it has not.
        model: the finalized model, once the run is finished.
        packed: the packed model.
    """

    name: str
    settings: Mapping[str, Any]
    outcome: Outcome | None
    model: Path
    packed: Path

    @property
    def summary(self) -> Summary | None:
        """The result of the search; None if it is not finished."""
        return None if self.outcome is None else self.outcome.summary

    @property
    def method(self) -> str:
        """The method, with what finetunes its result where that is not learned step sizes."""
        finetune_with = self.settings.get("finetune_with", "lsq")
        return str(self.settings["method"]) + ("" if finetune_with == "lsq" else f"+{finetune_with}")

    @property
    def budget(self) -> str:
        """The target, such as ``60KB``, ``3 planes`` or ``1.5G BOPs``."""
        if self.settings.get("target_bops"):
            return f"{self.settings['target_bops']} BOPs"
        size = self.settings.get("target_size")
        return str(size) if size is not None else f"{self.settings['target_bits']:g} planes"

    @property
    def group(self) -> str:
        """What runs have in common that differ in their seed and budget alone."""
        act_bits = self.settings.get("act_bits")
        return self.method + (f", {act_bits}-bit activations" if act_bits else "")


@dataclass(frozen=True)
class SweepResult:
    """The runs of a sweep.

    Attributes:
        folder: where it is.
        rows: an entry for each run, in the order of the plan.
    """

    folder: Path
    rows: tuple[SweepRow, ...]

    @property
    def finished(self) -> tuple[SweepRow, ...]:
        """The runs that are finished."""
        return tuple(row for row in self.rows if row.summary is not None)

    @property
    def metric_float(self) -> float | None:
        """The best metric that the float model had in any run; None if none measured it."""
        found = [row.summary.metric_float for row in self.finished if row.summary]
        return max((metric for metric in found if metric is not None), default=None)

    @property
    def front(self) -> tuple[SweepRow, ...]:
        """The runs of which none is both smaller and better, the smallest first."""
        best: list[SweepRow] = []
        for row in sorted(self.finished, key=lambda row: (_bytes(row), -_metric(row))):
            if not best or _metric(row) > _metric(best[-1]):
                best.append(row)
        return tuple(best)

    def best(self, *, max_drop: float) -> SweepRow:
        """Return the smallest file whose metric is at most `max_drop` below the float model's.

        Args:
            max_drop: in percent of the metric's unit: 0.5 of an accuracy is half a percentage point.

        Raises:
            InputError: no run is finished, the float metric is unknown, or no file is within the limit.
        """
        if not self.finished:
            raise InputError(f"{self.folder}: no run is finished")
        if self.metric_float is None:
            raise InputError(f"{self.folder}: the float model was not measured; give weights or float epochs")
        least = self.metric_float - max_drop / 100
        for row in self.front:
            if _metric(row) >= least:
                return row
        nearest = self.front[-1]
        raise InputError(
            f"{self.folder}: no file is within {max_drop:g} % of the float model's {self.metric_float:.4f}; "
            f"the best, {nearest.name}, has {_metric(nearest):.4f}"
        )

    def table(self) -> str:
        """Return a Markdown table of all runs: those of one method and budget with several seeds in one line."""
        columns = ("method", "budget", "activations", "seeds", "metric", "lowest … highest", "planes", "bits", "bytes",
                   "seconds")  # fmt: skip
        lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        cells: dict[tuple[str, str, Any], list[SweepRow]] = {}
        for row in self.rows:
            cells.setdefault((row.method, row.budget, row.settings.get("act_bits")), []).append(row)
        for (method, budget, act_bits), rows in cells.items():
            lines.append(f"| {method} | {budget} | {act_bits or 'float'} | {_seeds_and_figures(rows)} |")
        return "\n".join(lines) + "\n"


def _metric(row: SweepRow) -> float:
    assert row.outcome is not None
    return row.outcome.metric


def _bytes(row: SweepRow) -> int:
    assert row.outcome is not None
    return row.outcome.bytes


def _seeds_and_figures(rows: Sequence[SweepRow]) -> str:
    """Return the cells of a line of the table that follow the budget."""
    done = [row for row in rows if row.summary is not None]
    if not done:
        problem = next((row.outcome.problem for row in rows if row.outcome is not None), None)
        return f"0 of {len(rows)} | {'not done: ' + problem if problem else 'not finished'} | | | | |"
    metrics = [_metric(row) for row in done]
    summaries = [row.summary for row in done if row.summary]
    count = str(len(done)) if len(done) == len(rows) else f"{len(done)} of {len(rows)}"
    return " | ".join([
        count, f"{mean(metrics):.4f}", f"{min(metrics):.4f} … {max(metrics):.4f}" if len(done) > 1 else "",
        f"{mean(s.average_precision for s in summaries):.3f}", f"{mean(s.average_bit_width for s in summaries):.3f}",
        f"{max(map(_bytes, done)):,}", f"{mean(s.seconds for s in summaries):.0f}",
    ])  # fmt: skip
