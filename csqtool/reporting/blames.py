"""The picture of what made accuracy fall: each part's share of the metric's drop and of the output error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from csqtool.blaming import BlameReport
from csqtool.files import write_bytes
from csqtool.reporting.charts import heatmap, standalone

COLUMNS = ("of the metric's drop", "of the output error")


def view(found: BlameReport, label: str) -> dict[str, Any]:
    """Return what the page shows of a measurement."""
    return {"label": label, "picture": picture(found), "found": found}


def picture(found: BlameReport) -> Markup:
    """Return two cells for each part, the more opaque, the larger its share."""
    rows = [(one.name, [max(one.metric_share or 0.0, 0.0), max(one.error_share or 0.0, 0.0)]) for one in found.parts]
    largest = max((value for _, values in rows for value in values), default=0.0) or 1.0
    return heatmap("Share of the metric's drop and of the output error", rows, largest=largest, unit="of the whole",
                   columns=COLUMNS)  # fmt: skip


def draw(found: BlameReport, path: Path) -> None:
    """Write the picture as an SVG file of its own."""
    write_bytes(path, standalone(picture(found)).encode())
