"""The picture of a network's sensitivity: how much the loss rises with each layer rounded to few planes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from csqtool.files import write_bytes
from csqtool.layer_sensitivity import SensitivityReport
from csqtool.reporting.charts import heatmap, standalone


def view(found: SensitivityReport, label: str) -> dict[str, Any]:
    """Return what the page shows of a measurement."""
    rows = [
        (layer.name, layer.elements, layer.trace, one.planes, one.loss_change, one.output_error, one.divergence,
         one.weight_error)
        for layer in found.layers
        for one in layer.errors
    ]  # fmt: skip
    return {"label": label, "picture": picture(found), "rows": rows, "loss": found.loss, "samples": found.samples}


def picture(found: SensitivityReport) -> Markup:
    """Return a cell for each layer and number of planes, the more opaque, the more the loss rises."""
    rows = [(layer.name, [max(one.loss_change, 0.0) for one in layer.errors]) for layer in found.layers]
    planes = [f"{one.planes} planes" for one in found.layers[0].errors]
    largest = max((value for _, values in rows for value in values), default=0.0) or 1.0
    return heatmap(
        f"Rise of the loss with one layer rounded to {', '.join(planes)}", rows, largest=largest, unit="more loss",
        columns=planes,
    )  # fmt: skip


def draw(found: SensitivityReport, path: Path) -> None:
    """Write the picture as an SVG file of its own."""
    write_bytes(path, standalone(picture(found)).encode())
