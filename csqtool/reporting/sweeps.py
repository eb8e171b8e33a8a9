"""The picture of a sweep: the metric against the bytes of the packed files, a curve for each method."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from markupsafe import Markup

from csqtool.files import write_bytes
from csqtool.reporting.charts import Series, chart, standalone
from csqtool.sweeping.result import SweepResult, SweepRow


def view(found: SweepResult) -> dict[str, Any]:
    """Return what the page shows of a sweep; it has a picture if at least one run is finished."""
    front = {row.name for row in found.front}
    rows = [
        (row.name, row.budget, *_figures(row), "smallest for its metric" if row.name in front else _problem(row))
        for row in found.rows
    ]
    series = curves(found)
    return {
        "label": str(found.folder),
        "kinds": [one.label for one in series],
        "picture": _picture(found, series) if series else None,
        "rows": rows,
    }


def _figures(row: SweepRow) -> tuple[str, str]:
    if row.outcome is None or row.summary is None:
        return "", ""
    return f"{row.outcome.metric:.4f}", f"{row.outcome.bytes:,}"


def _problem(row: SweepRow) -> str:
    if row.outcome is None:
        return "not finished"
    return "" if row.outcome.problem is None else f"not done: {row.outcome.problem}"


def curves(found: SweepResult) -> list[Series]:
    """Return a curve for each method: the mean over the seeds at each budget, the smallest file first."""
    groups: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in found.finished:
        if row.outcome is not None:
            budgets = groups.setdefault(row.group, {})
            budgets.setdefault(row.budget, []).append((row.outcome.bytes, row.outcome.metric))
    series = []
    for group, budgets in groups.items():
        points = sorted(
            ((mean(size for size, _ in runs) / 1000, mean(metric for _, metric in runs)), _name(group, budget, runs))
            for budget, runs in budgets.items()
        )
        series.append(Series(group, [point for point, _ in points], [name for _, name in points]))
    return series


def _name(group: str, budget: str, runs: list[tuple[int, float]]) -> str:
    if len(runs) == 1:
        return f"{group}, {budget}"
    metrics = [metric for _, metric in runs]
    return f"{group}, {budget}, mean of {len(runs)} seeds from {min(metrics):.4f} to {max(metrics):.4f}"


def _picture(found: SweepResult, series: list[Series]) -> Markup:
    metric = next(row.summary.metric_name for row in found.finished if row.summary is not None)
    level = None if found.metric_float is None else ("float32", found.metric_float)
    return chart(f"{metric} against the size of the packed file", series, x="packed file, kB", y=metric, level=level)


def draw(found: SweepResult, path: Path) -> None:
    """Write the picture as an SVG file of its own; nothing is written before a run is finished."""
    if series := curves(found):
        halo = "fill: var(--c); stroke: var(--page); stroke-width: 3px; paint-order: stroke"  # over the grid's lines
        legend = "".join(
            f'<text class="c{number % 6}" style="{halo}" x="64" y="{28 + 15 * number}">'
            f"{Markup.escape(one.label)}</text>"
            for number, one in enumerate(series)
        )
        write_bytes(path, standalone(_picture(found, series), legend).encode())
