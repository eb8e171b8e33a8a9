"""Planes by measured loss: what settles a search, as an allocator by itself."""

from __future__ import annotations

from typing import ClassVar

from csqtool.searching.allocation import Allocation, Findings, Planes
from csqtool.searching.budget import uniform
from csqtool.searching.options import AllocatorOptions, Options
from csqtool.searching.scheme import allotted


class Measured:
    """Drops, adds and trades planes by the loss with one layer rounded, see `csqtool.searching.scheme.settle`."""

    description = "planes dropped, added and traded by measured loss"
    data: ClassVar[str] = "labelled"
    Options: ClassVar[type[Options]] = AllocatorOptions

    def __init__(self, allocation: Allocation) -> None:
        self._given = allocation
        self.findings: Findings | None = None

    def scheme(self) -> Planes:
        """Return the settled scheme."""
        budget, options = self._given.budget, self._given.options
        assert isinstance(options, AllocatorOptions)
        probe = self._given.probe(options.allocation_samples)
        losses: dict[str, dict[int, float]] = {}

        def loss_with(name: str, planes: tuple[int, ...]) -> float:
            losses.setdefault(name, {})[len(planes)] = loss = probe(name, planes)
            return loss

        found = allotted(budget, loss_with=loss_with)
        self.findings = Findings("loss with this layer alone rounded", losses)
        return {name: uniform(len(planes)) for name, planes in found.items()}
