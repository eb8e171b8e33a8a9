"""Data sets by name: ``digits``, ``npz:FILE``, ``cifar10:DIR`` or a factory of the user's."""

from __future__ import annotations

from csqtool.data.arrays import ArrayDataset, DataSource
from csqtool.data.sources import load_data

__all__ = ["ArrayDataset", "DataSource", "load_data"]
