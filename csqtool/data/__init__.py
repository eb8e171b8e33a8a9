"""Data sets by name (``digits``, CIFAR, image folders, ``npz:FILE``, a factory of the user's) or as objects."""

from __future__ import annotations

from csqtool.data.arrays import ArrayDataset
from csqtool.data.data_source import DataSource
from csqtool.data.fit import check_fit
from csqtool.data.given import as_source
from csqtool.data.preprocessing import Preprocessing
from csqtool.data.reading import batches_of, first_samples
from csqtool.data.sources import load_data
from csqtool.data.training import TrainingBatches, training_batches

__all__ = [
    "ArrayDataset",
    "DataSource",
    "Preprocessing",
    "TrainingBatches",
    "as_source",
    "batches_of",
    "check_fit",
    "first_samples",
    "load_data",
    "training_batches",
]
