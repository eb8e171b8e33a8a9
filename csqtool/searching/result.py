"""The result of a search: its figures, and the network to finalize."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from csqtool.notebook import page
from csqtool.searching.records import LogEntry, SchemeEntry, Summary

if TYPE_CHECKING:
    from csqtool.quantized_model import QuantizedModel
    from csqtool.searching.session import Session


@dataclass(frozen=True)
class SearchResult:
    """A finished search.

    Attributes:
        summary: metrics, cost and averages.
        scheme: each layer's planes and bit width.
        log: an entry for each epoch.
        run: the run directory; None if none was kept.
    """

    summary: Summary
    scheme: tuple[SchemeEntry, ...]
    log: tuple[LogEntry, ...]
    run: Path | None
    session: Session = field(repr=False, compare=False)

    @property
    def metric(self) -> float:
        """The task's metric of the quantized network on the test set."""
        return self.summary.metric

    @property
    def metric_float(self) -> float | None:
        """The same metric of the float model; None if it was not measured."""
        return self.summary.metric_float

    @property
    def average_precision(self) -> float:
        """Planes a weight, weighted by weight elements."""
        return self.summary.average_precision

    @property
    def average_bit_width(self) -> float:
        """Two's-complement bits a weight, weighted by weight elements."""
        return self.summary.average_bit_width

    @property
    def bit_widths(self) -> Mapping[str, int]:
        """Two's-complement bits of each layer, by parameter name."""
        return {entry.name: entry.bit_width for entry in self.scheme}

    def finalize(self) -> QuantizedModel:
        """Return the finalized model: signed integers, a scale and a bit width for each layer.

        All gates become unit steps, and biases are rounded to the integer grid of their layer if its input is
        quantized. The result is evaluated; it is the reference that every export is compared with.
        """
        from csqtool.searching.finalizing import finalized_model

        return finalized_model(self.session, self.summary.metric_float)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the figures, and a row a layer."""
        found = self.summary
        before = "" if self.metric_float is None else f" (float {self.metric_float:.4f})"
        lines = [
            f"{found.metric_name} {self.metric:.4f}{before}",
            f"{self.average_precision:.3f} planes and {self.average_bit_width:.3f} bits a weight on average",
        ]
        rows = [(one.name, one.precision, one.mask, one.bit_width, one.elements) for one in self.scheme]
        heads = ("layer", "precision", "mask", "bit width", "weights")
        return page(f"Search with {found.method}", lines, heads, rows)

    def without_run(self) -> SearchResult:
        """Return the same result without its run directory, whose folder is removed."""
        return replace(self, run=None)
