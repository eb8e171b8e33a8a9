"""Data sets by name: ``digits``, CIFAR, image folders, ``npz:FILE`` or a factory of the user's."""

from __future__ import annotations

from csqtool.data.arrays import ArrayDataset, DataSource
from csqtool.data.fit import check_fit
from csqtool.data.preprocessing import Preprocessing
from csqtool.data.sources import load_data

__all__ = ["ArrayDataset", "DataSource", "Preprocessing", "check_fit", "load_data"]
