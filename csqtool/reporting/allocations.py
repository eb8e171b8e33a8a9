"""What the page shows of an allocator: how sensitive each layer is, what fewer planes cost, and what it got."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from csqtool.reporting.charts import heatmap
from csqtool.searching.records import AllocationRecord

LEAST_SHARE = 1e-6  # of the largest harm; a smaller one, or none, is as light as this


def view(found: AllocationRecord, label: str) -> dict[str, Any]:
    """Return what the page shows of a record."""
    counts = planes(found)
    rows = []
    for layer in found.layers:
        harms = {one.planes: one.harm for one in layer.harms}
        rows.append((layer.name, layer.elements, layer.sensitivity, layer.precision, [harms.get(k) for k in counts]))
    return {
        "label": label,
        "found": found,
        "planes": counts,
        "rows": rows,
        "picture": picture(found) if counts else None,
    }


def planes(found: AllocationRecord) -> list[int]:
    """Return the numbers of planes that any layer has a harm of, ascending."""
    return sorted({one.planes for layer in found.layers for one in layer.harms})


def picture(found: AllocationRecord) -> Markup:
    """Return a cell for each layer and number of planes, the more opaque, the more harm, in powers of ten.

    The number after a layer's name is the planes that it got.
    """
    counts = planes(found)
    largest = max((one.harm for layer in found.layers for one in layer.harms), default=0.0)
    rows = []
    for layer in found.layers:
        harms = {one.planes: one.harm for one in layer.harms}
        rows.append((f"{layer.name}  {layer.precision}", [harms.get(k, math.nan) for k in counts]))

    def share(harm: float) -> float:
        relative = harm / largest if largest > 0 else 0.0
        return 1 - math.log(max(relative, LEAST_SHARE)) / math.log(LEAST_SHARE)

    return heatmap(
        f"Harm of few planes in each layer, as {found.allocator} sees it", rows, largest=1, unit=f"({found.harm})",
        columns=[f"{k} plane{'' if k == 1 else 's'}" for k in counts], share=share,
    )  # fmt: skip
