"""Planes by measured loss: what settles a search, as an allocator by itself."""

from __future__ import annotations

from typing import ClassVar

from csqtool.searching.allocation import Allocation, Planes
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

    def scheme(self) -> Planes:
        """Return the settled scheme."""
        budget, options = self._given.budget, self._given.options
        assert isinstance(options, AllocatorOptions)
        found = allotted(budget, loss_with=self._given.probe(options.allocation_samples))
        return {name: uniform(len(planes)) for name, planes in found.items()}
